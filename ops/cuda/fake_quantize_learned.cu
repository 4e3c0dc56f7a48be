#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/cuda/segments.cuh"
#include "ops/fake_quantize_learned.h"

namespace qat {
namespace {

// One pass over x: writes (4) and leaves the sums of (5) and (6) of each segment.
template <typename scalar_t>
void launch_backward(const BlockLayout& layout, QuantRange range, at::ScalarType scale_dtype,
                     const scalar_t* g, const scalar_t* in, const float* scale,
                     const float* zero_point, scalar_t* out, float* scale_sum, float* zero_sum) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float s = stored_scale(scale[segment.block], scale_dtype), inverse = 1.0f / s;
    const float z = zero_point ? stored_zero_point(zero_point[segment.block], range) : 0.0f;
    float scales = 0.0f, zeros = 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp) {
      const float grad = static_cast<float>(g[i]), x = static_cast<float>(in[i]);
      out[i] = static_cast<scalar_t>(affine::straight_through(grad, x, inverse, z, range));
      scales += affine::scale_gradient(grad, x, inverse, z, range);
      zeros += affine::zero_point_gradient(grad, x, s, inverse, z, range);
    }
    scales = warp_sum(scales);
    zeros = warp_sum(zeros);
    if (segment.lane == 0) {
      scale_sum[segment.index] = scales;
      zero_sum[segment.index] = zeros;
    }
  });
}

// One thread adds the rows of one block, top to bottom.
__global__ void sum_rows_kernel(BlockLayout layout, float factor, const float* partial,
                                float* sums) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       index < layout.grid_rows * layout.grid_cols; index += stride) {
    const int64_t first = index / layout.grid_cols * layout.block_rows;
    const int64_t col = index % layout.grid_cols;
    const int64_t last =
        first + layout.block_rows < layout.rows ? first + layout.block_rows : layout.rows;
    float sum = 0.0f;
    for (int64_t row = first; row < last; ++row) sum += partial[row * layout.grid_cols + col];
    sums[index] = sum * factor;
  }
}

at::Tensor sum_rows(const at::Tensor& partial, const BlockLayout& layout, double factor,
                    const at::Tensor& like) {
  at::Tensor sums = at::empty_like(like, at::MemoryFormat::Contiguous);
  if (sums.numel() == 0) return sums;
  sum_rows_kernel<<<blocks_for(sums.numel(), kThreads), kThreads, 0,
                    c10::cuda::getCurrentCUDAStream()>>>(layout, static_cast<float>(factor),
                                                         partial.const_data_ptr<float>(),
                                                         sums.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return sums;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient("fake_quantize_learned", grad, x);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous(),
                   upstream = grad.contiguous();
  const auto zeros = contiguous(zero_point);
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor grad_x = at::empty_like(input);
  const at::Tensor partial_scale = at::empty({layout.rows, layout.grid_cols}, scales.options());
  const at::Tensor partial_zero = at::empty_like(partial_scale);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_learned_backward", [&] {
    launch_backward(layout, to_range(quant_min, quant_max), scale_dtype,
                    upstream.const_data_ptr<scalar_t>(), input.const_data_ptr<scalar_t>(),
                    scales.const_data_ptr<float>(), data_or_null<float>(zeros),
                    grad_x.mutable_data_ptr<scalar_t>(), partial_scale.mutable_data_ptr<float>(),
                    partial_zero.mutable_data_ptr<float>());
  });
  return {grad_x, sum_rows(partial_scale, layout, gradient_scale, scale),
          zero_point ? sum_rows(partial_zero, layout, gradient_scale, scale)
                     : at::empty({0}, scale.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_cuda);
}

}  // namespace qat
