#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/sum_rows.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

// What a zero point does to an element before it is rounded and after.
enum class Shift { none, level, offset };

// Writes (4) and, for learned parameters, adds up (5) and (6).
template <Shift kShift, bool kLearned, typename Kind, typename scalar_t>
void backward_tiles(const BlockLayout& layout, const Kind& levels, Store store, const scalar_t* g,
                    const scalar_t* in, const TileSource& source, scalar_t* out, float* scale_sum,
                    float* zero_sum) {
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    source(tile, in, params);
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
      scale_sum[tile.first_segment + k] = scales.total();
      if constexpr (kShift != Shift::none) zero_sum[tile.first_segment + k] = zeros.total();
    });
  });
}

// Writes the gradient of x to `out`, which may be `grad` itself, and returns those of scale and
// zero point.
std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                            const Quantizer& quantizer, const OptionalTensor& scale,
                                            const OptionalTensor& zero_point,
                                            const OptionalTensor& outer_scale,
                                            const at::Tensor& out) {
  const BlockLayout layout = layout_of(x, quantizer.block);
  const at::Tensor input = x.contiguous();
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, outer_scale);
  const bool learned = quantizer.mode == Quantizer::Mode::learned;
  // The sums of each segment, so that the order of addition does not depend on the threads.
  const auto sums = [&](bool wanted) {
    return wanted ? at::empty({layout.rows, layout.grid_cols}, stored.scale.options())
                  : at::empty({0}, stored.scale.options());
  };
  const at::Tensor scale_sums = sums(learned), zero_sums = sums(learned && stored.zero_point);
  const auto with_dtype = [&](auto shift, auto is_learned, const auto& kind) {
    QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_backward", [&] {
      const scalar_t* g = grad.const_data_ptr<scalar_t>();
      scalar_t* to = out.mutable_data_ptr<scalar_t>();
      backward_tiles<shift(), is_learned()>(layout, kind, to == g ? Store::staged : store_for(out),
                                            g, input.const_data_ptr<scalar_t>(), TileSource(stored),
                                            to, scale_sums.mutable_data_ptr<float>(),
                                            zero_sums.mutable_data_ptr<float>());
    });
  };
  const auto with_shift = [&](auto shift, const auto& kind) {
    learned ? with_dtype(shift, std::true_type(), kind)
            : with_dtype(shift, std::false_type(), kind);
  };
  using None = std::integral_constant<Shift, Shift::none>;
  const Levels levels = quantizer.levels();
  with_kind(levels, [&](const auto& kind) {
    if (!stored.zero_point) return with_shift(None(), kind);
    if constexpr (std::is_same_v<std::decay_t<decltype(kind)>, WholeLevels>) {
      if (quantizer.has_offset())
        with_shift(std::integral_constant<Shift, Shift::offset>(), kind);
      else
        with_shift(std::integral_constant<Shift, Shift::level>(), kind);
    }
  });
  const auto factor = static_cast<float>(quantizer.gradient_scale);
  return {sum_rows(scale_sums, layout, factor), sum_rows(zero_sums, layout, factor)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
    const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale);
  check_gradient("fake_quantize", grad, x);
  const at::Tensor grad_x = kept_empty_like(x);
  const auto [grad_scale, grad_zero] =
      backward(grad.contiguous(), x, quantizer, scale, zero_point, outer_scale, grad_x);
  return {grad_x, grad_scale, grad_zero};
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_backward_inplace_cpu(
    at::Tensor& grad, const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
    const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale);
  check_gradient_inplace("fake_quantize", grad, x);
  return backward(grad, x, quantizer, scale, zero_point, outer_scale, grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("_fake_quantize_backward", &fake_quantize_backward_cpu);
  m.impl("_fake_quantize_backward_", &fake_quantize_backward_inplace_cpu);
}

}  // namespace qat
