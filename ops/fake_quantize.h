#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace qat {

// Rounds `x` to the levels that given scales and zero points describe. numerics.md (1) to (3).
//
//   x           float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   scale       float32 [grid_rows, grid_cols], one per block
//   zero_point  int8, shaped like `scale`; none means 0
//   block       {block_rows, block_cols}, -1 for a whole axis (blocks.h)
//   dtype       of the result: that of x, which is also the default, or for float32 x a half one
//
// On return y has the shape of x, and every element is (q - zero_point) * scale, rounded
// once to that dtype, for an integer q in [quant_min, quant_max]; an element of x that is not
// finite comes out as NaN. Differentiable in `x` (4), straight through.
at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max,
                         std::optional<at::ScalarType> dtype = std::nullopt);

// (4): `grad` where the rounded level lies on the grid, else 0. Recomputed from `x`; no mask is
// kept.
at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& scale,
                                  const std::optional<at::Tensor>& zero_point,
                                  at::IntArrayRef block, int64_t quant_min, int64_t quant_max);

// The same, written over `grad`.
void fake_quantize_backward_inplace(at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                    const std::optional<at::Tensor>& zero_point,
                                    at::IntArrayRef block, int64_t quant_min, int64_t quant_max);

// Called by every backend before it computes.
void check_fake_quantize(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max,
                         std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace qat
