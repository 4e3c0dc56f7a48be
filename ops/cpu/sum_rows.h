#pragma once

// The second half of a sum over a block, whose first are the sums of its segments: numerics.md (5).

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "qat/ops/blocks.h"
#include "qat/ops/cpu/lane_sum.h"

namespace qat {

// The sum of rows [first, last) of one column of `terms`, a matrix of `cols` columns: chunks of
// kSumRows rows in lanes, then the chunks in lanes.
template <typename T>
T sum_column(const T* terms, int64_t cols, int64_t first, int64_t last) {
  LaneSum<T> total;
  T chunk[kSumRows], sums[kSumRows];
  int64_t chunks = 0;
  for (int64_t from = first; from < last; from += kSumRows) {
    const int64_t count = std::min(kSumRows, last - from);
    for (int64_t i = 0; i < count; ++i) chunk[i] = terms[(from + i) * cols];
    LaneSum<T> lanes;
    lanes.add(chunk, count);
    sums[chunks++] = lanes.total();
    if (chunks < kSumRows) continue;
    total.add(sums, chunks);
    chunks = 0;
  }
  total.add(sums, chunks);
  return total.total();
}

// The sum over each block times `factor`, from one term a segment [rows, grid_cols].
inline at::Tensor sum_rows(const at::Tensor& terms, const BlockLayout& layout, float factor) {
  const at::Tensor sums = at::empty({layout.grid_rows, layout.grid_cols}, terms.options());
  const float* in = terms.const_data_ptr<float>();
  float* out = sums.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 4096 / layout.block_rows);
  at::parallel_for(0, sums.numel(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block / layout.grid_cols * layout.block_rows;
      const int64_t last = std::min(first + layout.block_rows, layout.rows);
      const float* column = in + block % layout.grid_cols;
      out[block] = sum_column(column, layout.grid_cols, first, last) * factor;
    }
  });
  return sums;
}

}  // namespace qat
