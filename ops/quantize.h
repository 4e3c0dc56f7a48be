#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// The codes that fake_quantize uses, shaped like `x`: the levels, int8, or in the narrowest float of
// torch's that has them, float8_e5m2 for its own and float8_e4m3fn for all other floats. numerics.md
// (1), (2). NaN becomes the lowest level; infinities saturate. `scale` and `zero_point` as they are
// stored; the quantizer's mode does not matter. Not differentiable.
QAT_API at::Tensor quantize(const at::Tensor& x, std::string_view quantizer,
                            const at::Tensor& scale,
                            const std::optional<at::Tensor>& zero_point = {});

// What torch keeps the codes of a grid in.
QAT_API at::ScalarType code_dtype(Grid grid);

// (3): (codes - zero_point) * scale in float32, rounded once to `dtype` (float32, float16 or
// bfloat16). `codes` as above; a `zero_point` of float32 is an offset, which is added. For finite x,
// dequantize(quantize(x)) equals fake_quantize(x) bit for bit. Differentiable in `scale`,
// numerics.md (29).
QAT_API at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale,
                              const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                              at::ScalarType dtype);

// Whether a zero point is an offset.
inline bool is_offset(const std::optional<at::Tensor>& zero_point) {
  return zero_point && zero_point->scalar_type() == at::kFloat;
}

// The gradient of the scale, numerics.md (29), float32 and shaped like it.
QAT_API at::Tensor dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                                       const at::Tensor& scale,
                                       const std::optional<at::Tensor>& zero_point,
                                       at::IntArrayRef block);
// For its kernels. Raises TypeError or ValueError.
void check_dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                               const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                               at::IntArrayRef block);

}  // namespace qat
