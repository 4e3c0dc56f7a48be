#include "ops/fake_quantize.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/cpu/segments.h"

namespace qat {
namespace {

at::Tensor fake_quantize_cpu(const at::Tensor& x, const at::Tensor& scale,
                             const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                             int64_t quant_min, int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = at::empty_like(input);
  const BlockLayout layout = layout_of(x, block);
  const QuantRange range = to_range(quant_min, quant_max);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
      for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
        const float s = scale_at[b], inverse = 1.0f / s;
        const float z = zero_at ? static_cast<float>(zero_at[b]) : 0.0f;
        for (int64_t i = at; i < at + length; ++i)
          out[i] = static_cast<scalar_t>(
              affine::fake_quantize(static_cast<float>(in[i]), s, inverse, z, range));
      });
    });
  });
  return y;
}

at::Tensor fake_quantize_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                      const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block, int64_t quant_min, int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient("fake_quantize", grad, x);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous(),
                   upstream = grad.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor grad_x = at::empty_like(input);
  const BlockLayout layout = layout_of(x, block);
  const QuantRange range = to_range(quant_min, quant_max);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_backward", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* g = upstream.const_data_ptr<scalar_t>();
    scalar_t* out = grad_x.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
      for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
        const float inverse = 1.0f / scale_at[b];
        const float z = zero_at ? static_cast<float>(zero_at[b]) : 0.0f;
        for (int64_t i = at; i < at + length; ++i)
          out[i] = static_cast<scalar_t>(affine::straight_through(
              static_cast<float>(g[i]), static_cast<float>(in[i]), inverse, z, range));
      });
    });
  });
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("fake_quantize", &fake_quantize_cpu);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_cpu);
}

}  // namespace qat
