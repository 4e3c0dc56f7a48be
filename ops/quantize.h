#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace qat {

// The codes that fake_quantize uses: int8, shaped like `x`, in [quant_min, quant_max]. numerics.md
// (1), (2). NaN becomes quant_min; infinities saturate. Arguments as in fake_quantize. Not
// differentiable.
at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale,
                    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                    int64_t quant_min, int64_t quant_max);

// (3): (codes - zero_point) * scale in float32, rounded once to `dtype` (float32, float16 or
// bfloat16). `codes` is int8. For finite x, dequantize(quantize(x)) equals fake_quantize(x) bit for
// bit. Differentiable in `scale`, numerics.md (29).
at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype);

// The gradient of the scale, numerics.md (29), float32 and shaped like it.
at::Tensor dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                               const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                               at::IntArrayRef block);

// Called by every backend before it computes.
void check_quantize(const at::Tensor& x, const at::Tensor& scale,
                    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                    int64_t quant_min, int64_t quant_max);
void check_dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype);

}  // namespace qat
