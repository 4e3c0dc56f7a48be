#pragma once

// What the CUDA kernels share: one warp walks one segment (blocks.h), reductions in a fixed order,
// launching. Only c10/cuda headers are included, so that the files compile beside a CPU build of
// torch.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "qat/ops/arguments.h"
#include "qat/ops/blocks.h"
#include "qat/ops/qparams.h"

// Tests run the kernels on a CPU, where a launch is a call (tests/cuda/simulator.h).
#ifndef QAT_LAUNCH
#define QAT_LAUNCH(kernel, blocks, ...)                                              \
  do {                                                                               \
    kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(__VA_ARGS__); \
    C10_CUDA_KERNEL_LAUNCH_CHECK();                                                  \
  } while (false)
#endif

namespace qat {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr unsigned kWholeWarp = 0xffffffffu;
// Enough blocks to fill any GPU; the kernels stride over the rest.
constexpr int64_t kMostBlocks = 1 << 16;

inline int blocks_for(int64_t items, int64_t per_block) {
  return static_cast<int>(std::min((items + per_block - 1) / per_block, kMostBlocks));
}

// One warp's share of a segment: elements at + lane, at + lane + 32, ...
struct WarpSegment {
  int64_t index;  // row * grid_cols + grid_col
  int64_t block;
  int64_t begin;
  int64_t end;
  int lane;
};

template <typename Visit>
__global__ void visit_segments(BlockLayout layout, Visit visit) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t index = first; index < layout.segments(); index += stride) {
    const int64_t row = index / layout.grid_cols, col = index % layout.grid_cols;
    const int64_t begin = layout.offset_of(row, col);
    visit(WarpSegment{index, layout.block_of(row, col), begin, begin + layout.segment_length(col),
                      lane});
  }
}

// Must be called under a device guard. An empty layout launches nothing.
template <typename Visit>
void launch_segments(const BlockLayout& layout, const Visit& visit) {
  if (layout.rows == 0 || layout.cols == 0) return;
  QAT_LAUNCH(visit_segments, blocks_for(layout.segments(), kThreads / kWarp), layout, visit);
}

// Reductions over the `lanes` neighbouring threads of a group, a power of two. A butterfly: every
// thread ends with the same value, added in the same order every run (LaneSum, ops/cpu/lane_sum.h).
__device__ __forceinline__ float warp_sum(float value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}
__device__ __forceinline__ float warp_min(float value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value = fminf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}
__device__ __forceinline__ float warp_max(float value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

// The range of what a thread has seen; low > high when that is nothing.
struct Range {
  float low = FLT_MAX;
  float high = -FLT_MAX;

  __device__ __forceinline__ void see(float value) {
    if (!is_finite(value)) return;
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  __device__ __forceinline__ QParams qparams(Grid grid, int bits, c10::ScalarType dtype) const {
    return low > high ? qparams_of(0.0f, 0.0f, grid, bits, dtype)
                      : qparams_of(low, high, grid, bits, dtype);
  }
  __device__ __forceinline__ Range over_warp(int lanes = kWarp) const {
    return {warp_min(low, lanes), warp_max(high, lanes)};
  }
};

}  // namespace qat
