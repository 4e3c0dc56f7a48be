#pragma once

// Sums in the order of numerics.md (5) and ops/cpu/sum_rows.h: 32 lanes within a segment, then the
// rows of a block in chunks of kSumRows by 32 lanes, then its chunks by 32 lanes.

#include <ATen/ops/empty.h>

#include "qat/ops/cuda/launch.cuh"
#include "qat/ops/cuda/walk.cuh"

namespace qat {

// A matrix of terms whose columns are added in runs of rows.
struct RowRuns {
  int64_t rows;  // of each of `batches` matrices that lie one after the other
  int64_t cols;
  int64_t height;  // of a block
  int64_t run;     // rows to a sum
  int64_t batches = 1;

  __host__ __device__ int64_t blocks() const { return (rows + height - 1) / height; }
  __host__ __device__ int64_t runs() const { return (height + run - 1) / run; }
  int64_t count() const { return batches * blocks() * runs() * cols; }
};

// A warp adds a run: out[batch, block, run, col].
template <typename in_t, typename T>
__global__ void sum_runs_kernel(RowRuns shape, T factor, const in_t* terms, T* out) {
  const int64_t runs = shape.runs(), blocks = shape.blocks();
  const int64_t count = shape.batches * blocks * runs * shape.cols;
  for (int64_t index = this_thread() / kWarp; index < count; index += all_threads() / kWarp) {
    const int64_t col = index % shape.cols, row_of_runs = index / shape.cols;
    const int64_t run = row_of_runs % runs, block = row_of_runs / runs % blocks;
    const int64_t first = block * shape.height + run * shape.run;
    int64_t last = first + shape.run;
    if (last > (block + 1) * shape.height) last = (block + 1) * shape.height;
    if (last > shape.rows) last = shape.rows;
    const in_t* from = terms + row_of_runs / runs / blocks * shape.rows * shape.cols + col;
    T sum = 0;
    for (int64_t row = first + lane_of_warp(); row < last; row += kWarp)
      sum += static_cast<T>(from[row * shape.cols]);
    sum = warp_sum(sum);
    if (lane_of_warp() == 0) out[index] = sum * factor;
  }
}

template <typename in_t, typename T>
void launch_sum_runs(const RowRuns& shape, T factor, const in_t* terms, T* out) {
  if (shape.count() == 0) return;
  const auto kernel = sum_runs_kernel<in_t, T>;
  QAT_LAUNCH(kernel, blocks_for(shape.count(), kThreads / kWarp), shape, factor, terms, out);
}

// The sum over each block times `factor`, from one term a segment, of each of `batches` matrices.
template <typename in_t, typename T>
void sum_rows(const at::Tensor& terms, const BlockLayout& layout, int64_t batches, T factor,
              const at::Tensor& sums) {
  const RowRuns chunks{layout.rows, layout.grid_cols, layout.block_rows, kSumRows, batches};
  const auto* from = terms.const_data_ptr<in_t>();
  T* to = sums.mutable_data_ptr<T>();
  if (chunks.runs() == 1) return launch_sum_runs(chunks, factor, from, to);
  const at::Tensor room = at::empty({chunks.count()}, sums.options());
  launch_sum_runs(chunks, T{1}, from, room.mutable_data_ptr<T>());
  const int64_t rows = layout.grid_rows * chunks.runs();
  launch_sum_runs(RowRuns{rows, layout.grid_cols, chunks.runs(), chunks.runs(), batches}, factor,
                  room.const_data_ptr<T>(), to);
}

}  // namespace qat
