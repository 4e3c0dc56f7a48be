#pragma once

#include <ATen/core/Tensor.h>

#include <array>

namespace qat {

// The mean magnitude of each block's finite elements, float32 [grid_rows, grid_cols], 0 where there
// are none; numerics.md (9b). Sums are of halves, in a fixed order, so that every device finds
// the same bits. x: float32, float16 or bfloat16, any shape, seen as a matrix.
at::Tensor absmean(const at::Tensor& x, const std::array<int64_t, 2>& block);

}  // namespace qat
