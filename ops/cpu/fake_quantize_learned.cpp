#include "qat/ops/fake_quantize_learned.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/lane_sum.h"
#include "qat/ops/cpu/round_tile.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

// Adds the rows of each block, top to bottom.
void sum_rows(const at::Tensor& partial, const BlockLayout& layout, float factor,
              const at::Tensor& sums) {
  const float* in = partial.const_data_ptr<float>();
  float* out = sums.mutable_data_ptr<float>();
  at::parallel_for(0, layout.grid_rows * layout.grid_cols, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index / layout.grid_cols * layout.block_rows;
      const int64_t last = std::min(first + layout.block_rows, layout.rows);
      float sum = 0.0f;
      for (int64_t row = first; row < last; ++row)
        sum += in[row * layout.grid_cols + index % layout.grid_cols];
      out[index] = sum * factor;
    }
  });
}

// The sums of each segment, so that the order of addition does not depend on the threads.
struct Partials {
  Partials(const BlockLayout& layout, const at::TensorOptions& options, bool symmetric)
      : scale(at::empty({layout.rows, layout.grid_cols}, options)),
        zero_point(symmetric ? at::Tensor() : at::empty_like(scale)) {}
  at::Tensor scale;
  at::Tensor zero_point;
};

// Writes (4) and adds up (5) and, unless symmetric, (6).
template <typename scalar_t, bool kSymmetric>
void backward_tiles(const BlockLayout& layout, QuantRange range, at::ScalarType scale_dtype,
                    Store store, const scalar_t* g, const scalar_t* in, const float* scale,
                    const float* zero_point, scalar_t* out, const Partials& partials) {
  float* scale_sum = partials.scale.mutable_data_ptr<float>();
  float* zero_sum = kSymmetric ? nullptr : partials.zero_point.mutable_data_ptr<float>();
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    round_params(tile, scale, zero_point, range, scale_dtype, params);
    LaneSum scales, zeros;
    alignas(64) float scale_terms[kStage], zero_terms[kStage];
    write_tile(tile, store, out, [&](int k, int64_t offset, auto length, scalar_t* to) QAT_BODY {
      const float s = params.scale[k], inverse = params.inverse[k];
      const float z = kSymmetric ? 0.0f : params.zero_point[k];
      const int64_t at = tile.at(k) + offset;
      select_indexed(g + at, in + at, to, length,
                     [&, ends = range](int64_t i, float grad, float x) QAT_BODY {
                       scale_terms[i] = affine::scale_gradient(grad, x, inverse, z, ends);
                       if constexpr (!kSymmetric)
                         zero_terms[i] = affine::zero_point_gradient(grad, x, s, inverse, z, ends);
                       return affine::straight_through(grad, x, inverse, z, ends);
                     });
      if (offset == 0) scales.clear(), zeros.clear();
      scales.add(scale_terms, length);
      if constexpr (!kSymmetric) zeros.add(zero_terms, length);
      if (offset + length < tile.length(k)) return;
      scale_sum[tile.first_segment + k] = scales.total();
      if constexpr (!kSymmetric) zero_sum[tile.first_segment + k] = zeros.total();
    });
  });
}

// Writes the gradient of x to `out`, which may be `grad` itself, and returns those of scale and
// zero point.
std::tuple<at::Tensor, at::Tensor> learned_backward(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& scale,
                                                    const std::optional<at::Tensor>& zero_point,
                                                    at::IntArrayRef block, QuantRange range,
                                                    at::ScalarType scale_dtype,
                                                    double gradient_scale, const at::Tensor& out) {
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const BlockLayout layout = layout_of(x, block);
  const Partials partials(layout, scales.options(), !zeros);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_learned_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const auto run = zeros ? backward_tiles<scalar_t, false> : backward_tiles<scalar_t, true>;
    run(layout, range, scale_dtype, to == g ? Store::staged : store_for(out), g,
        input.const_data_ptr<scalar_t>(), scales.const_data_ptr<float>(),
        data_or_null<float>(zeros), to, partials);
  });
  const float factor = static_cast<float>(gradient_scale);
  const at::Tensor grad_scale = at::empty_like(scales);
  sum_rows(partials.scale, layout, factor, grad_scale);
  const at::Tensor grad_zero = zeros ? at::empty_like(scales) : at::empty({0}, scales.options());
  if (zeros) sum_rows(partials.zero_point, layout, factor, grad_zero);
  return {grad_scale, grad_zero};
}

at::Tensor fake_quantize_learned_cpu(const at::Tensor& x, const at::Tensor& scale,
                                     const std::optional<at::Tensor>& zero_point,
                                     at::IntArrayRef block, int64_t quant_min, int64_t quant_max,
                                     at::ScalarType scale_dtype, double /*gradient_scale*/,
                                     std::optional<at::ScalarType> dtype) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                              dtype);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = kept_empty_like(input, dtype.value_or(x.scalar_type()));
  const QuantRange range = to_range(quant_min, quant_max);
  const RoundTile round{range, !zeros, store_for(y)};
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    const float* scale_at = scales.const_data_ptr<float>();
    const float* zero_at = data_or_null<float>(zeros);
    for_each_tile(layout_of(x, block), [&](const Tile& tile) QAT_BODY {
      TileParams params;
      round_params(tile, scale_at, zero_at, range, scale_dtype, params);
      round(tile, params, /*finite=*/false, in, out);
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient("fake_quantize_learned", grad, x);
  const at::Tensor grad_x = kept_empty_like(x);
  const auto [grad_scale, grad_zero] =
      learned_backward(grad.contiguous(), x, scale, zero_point, block,
                       to_range(quant_min, quant_max), scale_dtype, gradient_scale, grad_x);
  return {grad_x, grad_scale, grad_zero};
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_learned_backward_inplace_cpu(
    at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient_inplace("fake_quantize_learned", grad, x);
  return learned_backward(grad, x, scale, zero_point, block, to_range(quant_min, quant_max),
                          scale_dtype, gradient_scale, grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_cpu);
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_cpu);
  m.impl("_fake_quantize_learned_backward_", &fake_quantize_learned_backward_inplace_cpu);
}

}  // namespace qat
