#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// The longest run of columns that one call takes.
constexpr int64_t kMostFeedbackColumns = 1024;

// Rounds the columns of a matrix from left to right, each after adding what the errors of those to
// its left ask of it; numerics.md (16), the inner loop of GPTQ.
//
//   weight      float32 [rows, cols]: what is to be represented
//   offset      float32 [rows, cols]: what the columns before this matrix ask for
//   transfer    float32 [cols, cols]: entry (i, j), i < j, is what column j gets of the error of i;
//               the rest is not read
//   quantizer   a Quantizer's text (quantizer.h), of which the levels count
//   scale       float32 [rows, 1] or [rows, cols]
//   zero_point  int8, shaped like `scale`; none means 0. On the grid of offsets the offset, float32
//
// On return, column by column: `codes`, in quantize's dtype, are those of weight + offset + Σ error_i · transfer_ij
// under (1) and (2), or (3a), `error` is weight less what the code stands for, and `residual` is what was
// rounded less what it was rounded to. Sums run in a fixed order. Not differentiable.
QAT_API std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback(
    const at::Tensor& weight, std::string_view quantizer, const at::Tensor& offset,
    const at::Tensor& transfer, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point);

}  // namespace qat
