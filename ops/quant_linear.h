#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "qat/ops/api.h"

namespace qat {

// A linear layer on a fake-quantized weight and input, as one operator: y = x̂ ŵᵀ + bias. Fused not
// for the product, which is torch's, but for memory: the rounded tensors live only while they are
// multiplied, and the backward computes them again instead of saving them.
//
//   x, weight         [..., in] and [out, in], float32, float16 or bfloat16, of one dtype; or float32
//                     weights under half inputs, which are rounded to the grid in float32 and then
//                     once to the inputs' dtype
//   bias              [out] or none
//   *_scale           float32, one per block, for fixed and learned quantizers
//   *_zero_point      one per block: int8 for fixed, float32 for learned; none means 0
//   kept              what the caller keeps of the rounded weight while it does not change: nothing;
//                     {codes, scale, zero_point} of encode.h; or {ŵ} or {ŵ, scale, zero_point}. The
//                     result is the same for each.
//   *_quantizer       a Quantizer's text (quantizer.h); empty for none
//   *_outer_scale     as in fake_quantize
//
// Differentiable in x, weight, bias and learned parameters, straight through (4) to (6). Autocast
// casts x and leaves the weight in its own dtype.
QAT_API at::Tensor quant_linear(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias,
                                const std::optional<at::Tensor>& weight_scale,
                                const std::optional<at::Tensor>& weight_zero_point,
                                const std::optional<at::Tensor>& input_scale,
                                const std::optional<at::Tensor>& input_zero_point,
                                at::TensorList kept, std::string_view weight_quantizer,
                                std::string_view input_quantizer,
                                const std::optional<at::Tensor>& weight_outer_scale = {},
                                const std::optional<at::Tensor>& input_outer_scale = {});

// Gradients of x, weight, weight scale and zero point, input scale and zero point. `needs` says for
// x and for weight (or its parameters) whether to compute them; what is not computed is empty.
using QuantLinearGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
QAT_API QuantLinearGradients quant_linear_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const std::optional<at::Tensor>& weight_scale,
    const std::optional<at::Tensor>& weight_zero_point,
    const std::optional<at::Tensor>& input_scale, const std::optional<at::Tensor>& input_zero_point,
    at::TensorList kept, std::string_view weight_quantizer, std::string_view input_quantizer,
    const std::optional<at::Tensor>& weight_outer_scale,
    const std::optional<at::Tensor>& input_outer_scale, std::array<bool, 2> needs);

}  // namespace qat
