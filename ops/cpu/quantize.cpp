#include "ops/quantize.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/cpu/segments.h"

namespace qat {
namespace {

at::Tensor quantize_cpu(const at::Tensor& x, const at::Tensor& scale,
                        const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                        int64_t quant_min, int64_t quant_max) {
  check_quantize(x, scale, zero_point, block, quant_min, quant_max);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor codes = at::empty_like(input, input.options().dtype(at::kChar));
  const BlockLayout layout = layout_of(x, block);
  const QuantRange range = to_range(quant_min, quant_max);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    int8_t* out = codes.mutable_data_ptr<int8_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
      for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
        const float inverse = 1.0f / scale_at[b];
        const float z = zero_at ? static_cast<float>(zero_at[b]) : 0.0f;
        for (int64_t i = at; i < at + length; ++i)
          out[i] =
              static_cast<int8_t>(affine::quantize(static_cast<float>(in[i]), inverse, z, range));
      });
    });
  });
  return codes;
}

at::Tensor dequantize_cpu(const at::Tensor& codes, const at::Tensor& scale,
                          const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                          at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = at::empty_like(input, input.options().dtype(dtype));
  const BlockLayout layout = layout_of(codes, block);
  QAT_DISPATCH_FLOAT(dtype, "dequantize", [&] {
    const int8_t* in = input.const_data_ptr<int8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
      for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
        const float z = zero_at ? static_cast<float>(zero_at[b]) : 0.0f;
        for (int64_t i = at; i < at + length; ++i)
          out[i] =
              static_cast<scalar_t>(affine::dequantize(static_cast<float>(in[i]), scale_at[b], z));
      });
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("quantize", &quantize_cpu);
  m.impl("dequantize", &dequantize_cpu);
}

}  // namespace qat
