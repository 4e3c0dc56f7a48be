#include "ops/fake_quantize_learned.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/cpu/segments.h"

namespace qat {
namespace {

// Sixteen partial sums that are added in one fixed order: vectorises, and gives the same bits at
// any vector width.
struct LaneSum {
  static constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  QAT_HOST_DEVICE float total() const {
    float sum = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }
};

struct Segment {
  int64_t at;
  int64_t length;
  float scale;
  float inverse;
  float zero_point;
};

// Writes (4) for one segment and adds up (5) and (6).
template <typename scalar_t>
QAT_HOST_DEVICE void segment_backward(const Segment& segment, QuantRange range, const scalar_t* g,
                                      const scalar_t* in, scalar_t* out, float* scale_sum,
                                      float* zero_point_sum) {
  LaneSum scales, zeros;
  const auto visit = [&](int64_t i, int lane) QAT_BODY {
    const float grad = static_cast<float>(g[i]), x = static_cast<float>(in[i]);
    out[i] = static_cast<scalar_t>(
        affine::straight_through(grad, x, segment.inverse, segment.zero_point, range));
    scales.lanes[lane] +=
        affine::scale_gradient(grad, x, segment.inverse, segment.zero_point, range);
    zeros.lanes[lane] += affine::zero_point_gradient(grad, x, segment.scale, segment.inverse,
                                                     segment.zero_point, range);
  };
  const int64_t end = segment.at + segment.length;
  int64_t i = segment.at;
  for (; i + LaneSum::kLanes <= end; i += LaneSum::kLanes)
    for (int lane = 0; lane < LaneSum::kLanes; ++lane) visit(i + lane, lane);
  for (int lane = 0; i < end; ++i, ++lane) visit(i, lane);
  *scale_sum = scales.total();
  *zero_point_sum = zeros.total();
}

// Adds the rows of each block, top to bottom.
at::Tensor sum_rows(const at::Tensor& partial, const BlockLayout& layout, float factor,
                    const at::Tensor& like) {
  at::Tensor sums = at::empty_like(like, at::MemoryFormat::Contiguous);
  const float* in = partial.const_data_ptr<float>();
  float* out = sums.mutable_data_ptr<float>();
  for (int64_t block_row = 0; block_row < layout.grid_rows; ++block_row) {
    const int64_t first = block_row * layout.block_rows;
    const int64_t last = std::min(first + layout.block_rows, layout.rows);
    for (int64_t col = 0; col < layout.grid_cols; ++col) {
      float sum = 0.0f;
      for (int64_t row = first; row < last; ++row) sum += in[row * layout.grid_cols + col];
      out[block_row * layout.grid_cols + col] = sum * factor;
    }
  }
  return sums;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient("fake_quantize_learned", grad, x);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous(),
                   upstream = grad.contiguous();
  const auto zeros = contiguous(zero_point);
  const BlockLayout layout = layout_of(x, block);
  const QuantRange range = to_range(quant_min, quant_max);
  const at::Tensor grad_x = at::empty_like(input);
  // Partial sums per segment, so that the order of addition does not depend on the threads.
  const at::Tensor partial_scale = at::empty({layout.rows, layout.grid_cols}, scales.options());
  const at::Tensor partial_zero = at::empty_like(partial_scale);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_learned_backward", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* g = upstream.const_data_ptr<scalar_t>();
    scalar_t* out = grad_x.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const float* zero_at = data_or_null<float>(zeros);
    float* scale_sum = partial_scale.mutable_data_ptr<float>();
    float* zero_sum = partial_zero.mutable_data_ptr<float>();
    parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
      int64_t segment = begin * layout.grid_cols;
      for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
        const float s = stored_scale(scale_at[b], scale_dtype);
        const float z = zero_at ? stored_zero_point(zero_at[b], range) : 0.0f;
        segment_backward({at, length, s, 1.0f / s, z}, range, g, in, out, scale_sum + segment,
                         zero_sum + segment);
        ++segment;
      });
    });
  });
  const float factor = static_cast<float>(gradient_scale);
  return {
      grad_x, sum_rows(partial_scale, layout, factor, scale),
      zero_point ? sum_rows(partial_zero, layout, factor, scale) : at::empty({0}, scale.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_cpu);
}

}  // namespace qat
