#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "qat/ops/api.h"
#include "qat/ops/panels.h"

namespace qat {

// A linear layer whose weight stays packed in memory, for inference: y = x ŵᵀ + bias with
// ŵ = (codes - zero_point) * scale, one scale for each row and group of columns.
//
//   x           [..., in], float32, float16 or bfloat16
//   panels      int32 [panels, words, 16] of pack_panels
//   scale       [panels, groups, 16] of pack_panel_values, float32, float16 or bfloat16
//   zero_point  int8, shaped like `scale`; none means 0
//   bias        [out] in the dtype of x, or none
//   bits        4 or 8
//   group_size  columns that share a scale
//   out         rows of the weight
//
// On return [..., out] in the dtype of x. Sums run in float32; scales multiply the sums of their
// groups, and the weight is not rounded to the dtype of x. How far that is from dequantizing first:
// numerics.md (35). Runs on a CPU; refused elsewhere, and for an x that requires a gradient.
QAT_API at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& panels,
                                 const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point,
                                 const std::optional<at::Tensor>& bias, int64_t bits,
                                 int64_t group_size, int64_t out);

}  // namespace qat
