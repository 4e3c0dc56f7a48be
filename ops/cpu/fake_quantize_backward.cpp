#include "qat/ops/arguments.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/sum_rows.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

// Writes (4) and, for learned parameters, adds up (5) and (6).
template <Shift kShift, bool kLearned, typename scalar_t, typename Kind>
void backward_tiles(const Blocks& blocks, const Kind& levels, const TileSource& source,
                    const GradientTensors& gradients) {
  const scalar_t *g = gradients.grad.const_data_ptr<scalar_t>(),
                 *in = blocks.x.const_data_ptr<scalar_t>();
  scalar_t* out = gradients.x.mutable_data_ptr<scalar_t>();
  float *scale_sum = gradients.scale.mutable_data_ptr<float>(),
        *zero_sum = gradients.zero_point.mutable_data_ptr<float>();
  const float factor = gradients.factor;
  const Store store = out == g ? Store::staged : store_for(gradients.x);
  for_each_tile(blocks.layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    source.read(tile.first_block, tile.count, params);
    LaneSum<float> scales, zeros;
    alignas(64) float scale_terms[kStage], zero_terms[kStage];
    write_tile(tile, store, out, [&](int k, int64_t offset, auto length, scalar_t* to) QAT_BODY {
      const float s = kShift == Shift::offset ? -1.0f : params.scale[k];
      const float inverse = params.inverse[k];
      const float o = kShift == Shift::offset ? params.zero_point[k] : 0.0f;
      const float z = kShift == Shift::level ? params.zero_point[k] : 0.0f;
      const scalar_t *from_g = g + tile.at(k) + offset, *from = in + tile.at(k) + offset;
      if constexpr (!kLearned) {
        select(from_g, from, to, length, [=, ends = levels](float grad, float x) QAT_BODY {
          return affine::straight_through(grad, x - o, inverse, z, ends);
        });
        return;
      }
      select_indexed(from_g, from, to, length,
                     [&, ends = levels](int64_t i, float grad, float x) QAT_BODY {
                       const float u = x - o;
                       scale_terms[i] = affine::scale_gradient(grad, u, inverse, z, ends);
                       if constexpr (kShift != Shift::none)
                         zero_terms[i] = affine::zero_point_gradient(grad, u, s, inverse, z, ends);
                       return affine::straight_through(grad, u, inverse, z, ends);
                     });
      if (offset == 0) scales.clear(), zeros.clear();
      scales.add(scale_terms, length);
      if constexpr (kShift != Shift::none) zeros.add(zero_terms, length);
      if (offset + length < tile.length(k)) return;
      const int64_t segment = tile.first_segment + k;
      scale_sum[segment] = scales.total() * factor;
      if constexpr (kShift != Shift::none) zero_sum[segment] = zeros.total() * factor;
    });
  });
}

void backward(const Blocks& blocks, const StoredTensors& stored, const GradientTensors& gradients) {
  const TileSource source = TileSource::stored(blocks.quantizer, stored);
  with_shift(blocks.quantizer, stored.zero_point.has_value(), [&](auto shift, const auto& levels) {
    QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "fake_quantize_backward", [&] {
      blocks.quantizer.mode == Quantizer::Mode::learned
          ? backward_tiles<shift(), true, scalar_t>(blocks, levels, source, gradients)
          : backward_tiles<shift(), false, scalar_t>(blocks, levels, source, gradients);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  implement_fake_quantize_backward(m, {Learned::as_given, &backward, &sum_rows});
}

}  // namespace qat
