#include "qat/ops/quantize.h"

#include <ATen/ops/empty_like.h>

#include "qat/ops/cpu/sum_rows.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

template <typename scalar_t, typename out_t>
void quantize_tiles(const Blocks& blocks, const StoredTensors& stored, out_t* out) {
  const Quantizer& quantizer = blocks.quantizer;
  const TileSource source = TileSource::stored(quantizer, stored);
  const bool offset = quantizer.has_offset();
  const auto* in = blocks.x.const_data_ptr<scalar_t>();
  for_each_tile(blocks.layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    source.read(tile.first_block, tile.count, params);
    with_kind(quantizer.levels(), [&](const auto& kind) QAT_BODY {
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const float inverse = params.inverse[k], shift = params.zero_point[k];
        const float o = offset ? shift : 0.0f, z = offset ? 0.0f : shift;
        convert(in + tile.at(k), out + tile.at(k), length, [=](float value) QAT_BODY {
          return affine::quantize(value - o, inverse, z, kind);
        });
      });
    });
  });
}

void quantize_blocks(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes) {
  // Levels of a float are numbers of torch's type, whose conversion is exact.
  const bool whole = codes.scalar_type() == at::kChar;
  const at::Tensor levels = whole ? codes : at::empty_like(codes, at::kFloat);
  QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "quantize", [&] {
    whole ? quantize_tiles<scalar_t>(blocks, stored, levels.mutable_data_ptr<int8_t>())
          : quantize_tiles<scalar_t>(blocks, stored, levels.mutable_data_ptr<float>());
  });
  if (!whole) codes.copy_(levels);
}

// The zero points of a dequantization, or its offsets; null where there are none of the kind.
struct Shifts {
  at::Tensor values;
  const float* zeros = nullptr;
  const float* offsets = nullptr;

  explicit Shifts(const OptionalTensor& zero_point) {
    if (!zero_point) return;
    values = zero_point->to(at::kFloat).contiguous();
    (is_offset(zero_point) ? offsets : zeros) = values.const_data_ptr<float>();
  }
};

template <typename code_t, typename scalar_t>
void dequantize_tiles(const code_t* in, const BlockLayout& layout, const float* scale,
                      const Shifts& shifts, scalar_t* out) {
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    for_each_segment(tile, [&](int k, auto length) QAT_BODY {
      const int64_t b = tile.first_block + k;
      const float s = canonical(scale[b]), z = shifts.zeros ? shifts.zeros[b] : 0.0f;
      const auto* from = in + tile.at(k);
      auto* to = out + tile.at(k);
      if (shifts.offsets)
        convert(from, to, length, [=, o = canonical(shifts.offsets[b])](float code) QAT_BODY {
          return affine::dequantize(code, s, 0.0f) + o;
        });
      else
        convert(from, to, length,
                [=](float code) QAT_BODY { return affine::dequantize(code, s, z); });
    });
  });
}

void dequantize_blocks(const at::Tensor& codes, const BlockLayout& layout, const at::Tensor& scale,
                       const OptionalTensor& zero_point, const at::Tensor& y) {
  const Shifts shifts(zero_point);
  const bool whole = codes.scalar_type() == at::kChar;
  const at::Tensor levels = whole ? codes : codes.to(at::kFloat);
  QAT_DISPATCH_FLOAT(y.scalar_type(), "dequantize", [&] {
    const auto run = [&](const auto* in) {
      dequantize_tiles(in, layout, scale.const_data_ptr<float>(), shifts,
                       y.mutable_data_ptr<scalar_t>());
    };
    whole ? run(levels.const_data_ptr<int8_t>()) : run(levels.const_data_ptr<float>());
  });
}

// (29), in the order of (5).
at::Tensor dequantize_backward_cpu(const at::Tensor& grad, const at::Tensor& codes,
                                   const at::Tensor& scale, const OptionalTensor& zero_point,
                                   at::IntArrayRef block) {
  check_dequantize_backward(grad, codes, scale, zero_point, block);
  const BlockLayout layout = layout_of(codes, block);
  const at::Tensor upstream = grad.to(at::kFloat).contiguous();
  const at::Tensor levels = codes.to(at::kFloat).contiguous();
  const Shifts shifts(zero_point);
  const at::Tensor sums = at::empty({layout.rows, layout.grid_cols}, scale.options());
  const float *g = upstream.const_data_ptr<float>(), *q = levels.const_data_ptr<float>();
  float* to = sums.mutable_data_ptr<float>();
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    for_each_segment(tile, [&](int k, auto length) QAT_BODY {
      const float z = shifts.zeros ? shifts.zeros[tile.first_block + k] : 0.0f;
      LaneSum<float> sum;
      alignas(64) float terms[kStage];
      for (int64_t from = 0; from < length; from += kStage) {
        const int64_t at = tile.at(k) + from, count = std::min<int64_t>(kStage, length - from);
        for (int64_t i = 0; i < count; ++i) terms[i] = g[at + i] * (q[at + i] - z);
        sum.add(terms, count);
      }
      to[tile.first_segment + k] = sum.total();
    });
  });
  return layout.block_rows == 1 ? sums : sum_rows(sums, layout, 1.0f);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  implement_quantize(m, {&quantize_blocks, &dequantize_blocks});
  m.impl("_dequantize_backward", &dequantize_backward_cpu);
}

}  // namespace qat
