#pragma once

// Granularity is a block shape, not a kernel. A tensor is seen as a matrix [rows, cols] whose cols
// are the last dimension; `block = {block_rows, block_cols}` cuts it into a grid of blocks, -1
// meaning the whole axis. Per tensor {-1, -1}, per channel or token {1, -1}, per group {1, g}, 2-D
// {128, 128}. The last block of an axis may be short.
//
// The part of a row that lies in one block is a segment: contiguous memory under one scale. Every
// kernel is a loop over segments.

#include <algorithm>
#include <cstdint>

#include "qat/ops/affine.h"

namespace qat {

struct BlockLayout {
  int64_t rows;
  int64_t cols;
  int64_t block_rows;
  int64_t block_cols;
  int64_t grid_rows;
  int64_t grid_cols;

  QAT_HOST_DEVICE int64_t block_of(int64_t row, int64_t grid_col) const {
    return row / block_rows * grid_cols + grid_col;
  }
  QAT_HOST_DEVICE int64_t segment_length(int64_t grid_col) const {
    const int64_t left = cols - grid_col * block_cols;
    return left < block_cols ? left : block_cols;
  }
  QAT_HOST_DEVICE int64_t offset_of(int64_t row, int64_t grid_col) const {
    return row * cols + grid_col * block_cols;
  }
  QAT_HOST_DEVICE int64_t segments() const { return rows * grid_cols; }
  QAT_HOST_DEVICE int64_t blocks() const { return grid_rows * grid_cols; }
};

// Rows whose sums are added first when a block has more; numerics.md (5).
constexpr int64_t kSumRows = 1024;

// `block` sides of -1 take the whole axis, as do sides longer than it.
inline BlockLayout make_layout(int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols) {
  const auto side = [](int64_t block, int64_t axis) {
    return std::max<int64_t>(1, block == -1 ? axis : std::min(block, axis));
  };
  const int64_t height = side(block_rows, rows);
  const int64_t width = side(block_cols, cols);
  return {rows, cols, height, width, (rows + height - 1) / height, (cols + width - 1) / width};
}

}  // namespace qat
