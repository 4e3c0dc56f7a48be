#include "qat/ops/quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/sum_rows.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

at::Tensor quantize_cpu(const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                        const OptionalTensor& zero_point) {
  const Quantizer quantizer = check_quantize(x, text, scale, zero_point);
  const at::Tensor input = x.contiguous();
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, std::nullopt);
  // Levels of a float are numbers of torch's type, whose conversion is exact.
  const bool whole = !is_float(quantizer.grid);
  const at::Tensor levels =
      at::empty_like(input, input.options().dtype(whole ? at::kChar : at::kFloat));
  const TileSource source(stored);
  const bool offset = quantizer.has_offset();
  const auto run = [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = levels.mutable_data_ptr<decltype(out_type)>();
    for_each_tile(layout_of(x, quantizer.block), [&](const Tile& tile) QAT_BODY {
      TileParams params;
      source(tile, in, params);
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
  };
  QAT_DISPATCH_FLOAT(x.scalar_type(), "quantize",
                     [&] { whole ? run(scalar_t(), int8_t()) : run(scalar_t(), float()); });
  return levels.to(code_dtype(quantizer.grid));
}

// Codes as kernels read them: int8, or a float's levels in float32.
at::Tensor readable(const at::Tensor& codes) {
  return codes.scalar_type() == at::kChar ? codes.contiguous() : codes.to(at::kFloat).contiguous();
}

// Zero points, or with `offset` offsets; null where there are none of the kind.
const float* shifts(const OptionalTensor& zero_point, const OptionalTensor& as_float, bool offset) {
  const bool is_offset = zero_point && zero_point->scalar_type() == at::kFloat;
  return zero_point && is_offset == offset ? as_float->const_data_ptr<float>() : nullptr;
}

at::Tensor dequantize_cpu(const at::Tensor& codes, const at::Tensor& scale,
                          const OptionalTensor& zero_point, at::IntArrayRef block,
                          at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  const at::Tensor input = readable(codes), scales = scale.contiguous();
  const OptionalTensor as_float =
      zero_point ? OptionalTensor(zero_point->to(at::kFloat).contiguous()) : std::nullopt;
  const float *zeros = shifts(zero_point, as_float, false),
              *offsets = shifts(zero_point, as_float, true);
  const at::Tensor y = kept_empty_like(input, dtype);
  const auto run = [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    const float* scale_at = scales.const_data_ptr<float>();
    for_each_tile(layout_of(codes, block), [&](const Tile& tile) QAT_BODY {
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const int64_t b = tile.first_block + k;
        const float s = scale_at[b], z = zeros ? zeros[b] : 0.0f;
        const auto* from = in + tile.at(k);
        auto* to = out + tile.at(k);
        if (offsets)
          convert(from, to, length, [=, o = offsets[b]](float code) QAT_BODY {
            return affine::dequantize(code, s, 0.0f) + o;
          });
        else
          convert(from, to, length,
                  [=](float code) QAT_BODY { return affine::dequantize(code, s, z); });
      });
    });
  };
  QAT_DISPATCH_FLOAT(dtype, "dequantize", [&] {
    input.scalar_type() == at::kChar ? run(int8_t(), scalar_t()) : run(float(), scalar_t());
  });
  return y;
}

// (29), in the order of (5).
at::Tensor dequantize_backward_cpu(const at::Tensor& grad, const at::Tensor& codes,
                                   const at::Tensor& scale, const OptionalTensor& zero_point,
                                   at::IntArrayRef block) {
  const BlockLayout layout = layout_of(codes, block);
  const at::Tensor upstream = grad.to(at::kFloat).contiguous();
  const at::Tensor levels = codes.to(at::kFloat).contiguous();
  const OptionalTensor as_float =
      zero_point ? OptionalTensor(zero_point->to(at::kFloat).contiguous()) : std::nullopt;
  const float* zeros = shifts(zero_point, as_float, false);
  const at::Tensor sums = at::empty({layout.rows, layout.grid_cols}, scale.options());
  const float *g = upstream.const_data_ptr<float>(), *q = levels.const_data_ptr<float>();
  float* to = sums.mutable_data_ptr<float>();
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    for_each_segment(tile, [&](int k, auto length) QAT_BODY {
      const float z = zeros ? zeros[tile.first_block + k] : 0.0f;
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
  return sum_rows(sums, layout, 1.0f);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("quantize", &quantize_cpu);
  m.impl("dequantize", &dequantize_cpu);
  m.impl("_dequantize_backward", &dequantize_backward_cpu);
}

}  // namespace qat
