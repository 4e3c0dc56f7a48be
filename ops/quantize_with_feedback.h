#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace qat {

// The longest run of columns that one call takes.
constexpr int64_t kMostFeedbackColumns = 1024;

// Rounds the columns of a matrix from left to right, each after adding what the errors of those to
// its left ask of it; numerics.md (16), the inner loop of GPTQ.
//
//   weight      float32 [rows, cols]: what is to be represented
//   offset      float32 [rows, cols]: what the columns before this matrix ask for
//   transfer    float32 [cols, cols]: entry (i, j), i < j, is what column j gets of the error of i;
//   the
//               rest is not read
//   scale       float32 [rows, 1] or [rows, cols]
//   zero_point  int8, shaped like `scale`
//
// On return, column by column: `codes` int8 are those of weight + offset + Σ error_i · transfer_ij
// under (1) and (2), `error` is weight - (codes - zero_point) · scale, and `residual` is what was
// rounded less what it was rounded to. Sums run in a fixed order. Not differentiable.
std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback(
    const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& transfer,
    const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max);

// Called by every backend before it computes.
void check_quantize_with_feedback(const at::Tensor& weight, const at::Tensor& offset,
                                  const at::Tensor& transfer, const at::Tensor& scale,
                                  const at::Tensor& zero_point, int64_t quant_min,
                                  int64_t quant_max);

}  // namespace qat
