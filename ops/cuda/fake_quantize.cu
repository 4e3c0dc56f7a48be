#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/cuda/round.cuh"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/float8.h"

namespace qat {
namespace {

// (4). `out` may be `g` itself.
template <typename scalar_t>
void launch_backward(const BlockLayout& layout, QuantRange range, const scalar_t* g,
                     const scalar_t* in, const float* scale, const int8_t* zero_point,
                     scalar_t* out) {
  constexpr int kSize = kPerVector<scalar_t>;
  using Packed = Vector<scalar_t, kSize>;
  const auto vectors = vector_layout<scalar_t>(layout, g, in, out);
  if (vectors.usable) {
    launch_vectors(vectors, [=] __device__(int64_t vector, int64_t block) {
      const float inverse = 1.0f / scale[block];
      const float z = zero_point ? static_cast<float>(zero_point[block]) : 0.0f;
      Packed grad = reinterpret_cast<const Packed*>(g)[vector];
      const Packed x = reinterpret_cast<const Packed*>(in)[vector];
      for (int j = 0; j < kSize; ++j)
        grad.at[j] = static_cast<scalar_t>(affine::straight_through(
            static_cast<float>(grad.at[j]), static_cast<float>(x.at[j]), inverse, z, range));
      reinterpret_cast<Packed*>(out)[vector] = grad;
    });
    return;
  }
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
                              int64_t quant_min, int64_t quant_max,
                              std::optional<at::ScalarType> dtype) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max, dtype);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range))
    return float8_fake_quantize(x, scale, block, range, dtype.value_or(x.scalar_type()));
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y =
      at::empty_like(input, input.options().dtype(dtype.value_or(x.scalar_type())));
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    launch_round(layout_of(x, block), to_range(quant_min, quant_max),
                 input.const_data_ptr<decltype(in_type)>(),
                 y.mutable_data_ptr<decltype(out_type)>(),
                 StoredParams{scales.const_data_ptr<float>(), data_or_null<int8_t>(zeros)});
  });
  return y;
}

void straight_through_cuda(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                           const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                           QuantRange range, const at::Tensor& out) {
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_backward", [&] {
    launch_backward(layout_of(x, block), range, grad.const_data_ptr<scalar_t>(),
                    input.const_data_ptr<scalar_t>(), scales.const_data_ptr<float>(),
                    data_or_null<int8_t>(zeros), out.mutable_data_ptr<scalar_t>());
  });
}

at::Tensor fake_quantize_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                                       const at::Tensor& scale,
                                       const std::optional<at::Tensor>& zero_point,
                                       at::IntArrayRef block, int64_t quant_min,
                                       int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient("fake_quantize", grad, x);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range)) {
    const at::Tensor passed = grad.clone(at::MemoryFormat::Contiguous);
    float8_straight_through_inplace(passed, x, scale, block, range);
    return passed;
  }
  const at::Tensor grad_x = at::empty_like(x, at::MemoryFormat::Contiguous);
  straight_through_cuda(grad.contiguous(), x, scale, zero_point, block,
                        to_range(quant_min, quant_max), grad_x);
  return grad_x;
}

void fake_quantize_backward_inplace_cuda(at::Tensor& grad, const at::Tensor& x,
                                         const at::Tensor& scale,
                                         const std::optional<at::Tensor>& zero_point,
                                         at::IntArrayRef block, int64_t quant_min,
                                         int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient_inplace("fake_quantize", grad, x);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range))
    return float8_straight_through_inplace(grad, x, scale, block, range);
  straight_through_cuda(grad, x, scale, zero_point, block, to_range(quant_min, quant_max), grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("fake_quantize", &fake_quantize_cuda);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_cuda);
  m.impl("_fake_quantize_backward_", &fake_quantize_backward_inplace_cuda);
}

}  // namespace qat
