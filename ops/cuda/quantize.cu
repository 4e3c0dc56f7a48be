#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/cuda/segments.cuh"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

template <typename scalar_t>
void launch_quantize(const BlockLayout& layout, QuantRange range, const scalar_t* in,
                     const float* scale, const int8_t* zero_point, int8_t* out) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float inverse = 1.0f / scale[segment.block];
    const float z = zero_point ? static_cast<float>(zero_point[segment.block]) : 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<int8_t>(affine::quantize(static_cast<float>(in[i]), inverse, z, range));
  });
}

template <typename scalar_t>
void launch_dequantize(const BlockLayout& layout, const int8_t* in, const float* scale,
                       const int8_t* zero_point, scalar_t* out) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float s = scale[segment.block];
    const float z = zero_point ? static_cast<float>(zero_point[segment.block]) : 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<scalar_t>(affine::dequantize(static_cast<float>(in[i]), s, z));
  });
}

at::Tensor quantize_cuda(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max) {
  check_quantize(x, scale, zero_point, block, quant_min, quant_max);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor codes = at::empty_like(input, input.options().dtype(at::kChar));
  QAT_DISPATCH_FLOAT(x.scalar_type(), "quantize", [&] {
    launch_quantize(layout_of(x, block), to_range(quant_min, quant_max),
                    input.const_data_ptr<scalar_t>(), scales.const_data_ptr<float>(),
                    data_or_null<int8_t>(zeros), codes.mutable_data_ptr<int8_t>());
  });
  return codes;
}

at::Tensor dequantize_cuda(const at::Tensor& codes, const at::Tensor& scale,
                           const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                           at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  const c10::cuda::CUDAGuard on_device(codes.device());
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = at::empty_like(input, input.options().dtype(dtype));
  QAT_DISPATCH_FLOAT(dtype, "dequantize", [&] {
    launch_dequantize(layout_of(codes, block), input.const_data_ptr<int8_t>(),
                      scales.const_data_ptr<float>(), data_or_null<int8_t>(zeros),
                      y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("quantize", &quantize_cuda);
  m.impl("dequantize", &dequantize_cuda);
}

}  // namespace qat
