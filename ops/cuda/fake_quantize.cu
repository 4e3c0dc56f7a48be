#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/cuda/segments.cuh"
#include "ops/fake_quantize.h"

namespace qat {
namespace {

template <typename scalar_t>
void launch_forward(const BlockLayout& layout, QuantRange range, const scalar_t* in,
                    const float* scale, const int8_t* zero_point, scalar_t* out) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float s = scale[segment.block], inverse = 1.0f / s;
    const float z = zero_point ? static_cast<float>(zero_point[segment.block]) : 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<scalar_t>(
          affine::fake_quantize(static_cast<float>(in[i]), s, inverse, z, range));
  });
}

template <typename scalar_t>
void launch_backward(const BlockLayout& layout, QuantRange range, const scalar_t* g,
                     const scalar_t* in, const float* scale, const int8_t* zero_point,
                     scalar_t* out) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float inverse = 1.0f / scale[segment.block];
    const float z = zero_point ? static_cast<float>(zero_point[segment.block]) : 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<scalar_t>(affine::straight_through(
          static_cast<float>(g[i]), static_cast<float>(in[i]), inverse, z, range));
  });
}

at::Tensor fake_quantize_cuda(const at::Tensor& x, const at::Tensor& scale,
                              const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                              int64_t quant_min, int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = at::empty_like(input);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize", [&] {
    launch_forward(layout_of(x, block), to_range(quant_min, quant_max),
                   input.const_data_ptr<scalar_t>(), scales.const_data_ptr<float>(),
                   data_or_null<int8_t>(zeros), y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

at::Tensor fake_quantize_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                                       const at::Tensor& scale,
                                       const std::optional<at::Tensor>& zero_point,
                                       at::IntArrayRef block, int64_t quant_min,
                                       int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient("fake_quantize", grad, x);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous(),
                   upstream = grad.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor grad_x = at::empty_like(input);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_backward", [&] {
    launch_backward(layout_of(x, block), to_range(quant_min, quant_max),
                    upstream.const_data_ptr<scalar_t>(), input.const_data_ptr<scalar_t>(),
                    scales.const_data_ptr<float>(), data_or_null<int8_t>(zeros),
                    grad_x.mutable_data_ptr<scalar_t>());
  });
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("fake_quantize", &fake_quantize_cuda);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_cuda);
}

}  // namespace qat
