#pragma once

// The quick way through the usual layouts: blocks of one row that divide it and are made of whole
// 16-byte vectors lie one after the other in memory, so that a thread takes one vector, and a shift
// says to which block it belongs. Each kernel has a way over segments.cuh for all other layouts.

#include "qat/ops/cuda/segments.cuh"

namespace qat {

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T at[kSize];
};

// Elements in 16 bytes of the argument's type.
template <typename scalar_t>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(scalar_t));

struct VectorLayout {
  bool usable;
  int64_t vectors;
  int64_t per_block;
  int shift;  // log2 of per_block, or -1

  __device__ __forceinline__ int64_t block_of(int64_t vector) const {
    return shift >= 0 ? vector >> shift : vector / per_block;
  }
  // Whether the threads of a block are a power of two of neighbours in one warp.
  bool in_warp() const { return usable && shift >= 0 && per_block <= kWarp; }
};

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename scalar_t, typename... Pointers>
VectorLayout vector_layout(const BlockLayout& layout, const Pointers*... pointers) {
  constexpr int64_t kSize = kPerVector<scalar_t>;
  VectorLayout vectors{layout.block_rows == 1 && layout.cols > 0 &&
                           layout.cols % layout.block_cols == 0 && layout.block_cols % kSize == 0 &&
                           (is_aligned(pointers) && ...),
                       layout.rows * layout.cols / kSize, layout.block_cols / kSize, -1};
  for (int shift = 0; shift < 32; ++shift)
    if (int64_t{1} << shift == vectors.per_block) vectors.shift = shift;
  return vectors;
}

template <typename Visit>
__global__ void visit_vectors(VectorLayout layout, Visit visit) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t vector = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       vector < layout.vectors; vector += stride)
    visit(vector, layout.block_of(vector));
}

// Calls visit(vector, block) for every vector, in no order.
template <typename Visit>
void launch_vectors(const VectorLayout& layout, const Visit& visit) {
  if (layout.vectors == 0) return;
  QAT_LAUNCH(visit_vectors, blocks_for(layout.vectors, kThreads), layout, visit);
}

template <typename Visit>
__global__ void visit_warps_of_vectors(VectorLayout layout, Visit visit) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t padded = (layout.vectors + kWarp - 1) / kWarp * kWarp;
  for (int64_t vector = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       vector < padded; vector += stride)
    visit(vector, layout.block_of(vector), vector < layout.vectors);
}

// Calls visit(vector, block, active) in whole warps, so that it may shuffle; where not active, the
// vector lies past the end, as do all of its block.
template <typename Visit>
void launch_warps_of_vectors(const VectorLayout& layout, const Visit& visit) {
  if (layout.vectors == 0) return;
  QAT_LAUNCH(visit_warps_of_vectors, blocks_for(layout.vectors, kThreads), layout, visit);
}

// A block's sum of `terms` in the order of LaneSum (ops/cpu/lane_sum.h): element i joins lane i %
// 32, then halves. The block lies in `lanes` neighbouring threads, kSize elements in each.
template <int kSize>
__device__ __forceinline__ float lane_sum(const float (&terms)[kSize], int lanes) {
  constexpr int kAround = kWarp / kSize;  // threads that hold 32 neighbouring elements
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int base = lane - lane % lanes, place = lane % kAround;
  float sums[kSize] = {};
  for (int from = 0; from < lanes; from += kAround)
    for (int j = 0; j < kSize; ++j)
      sums[j] += __shfl_sync(kWholeWarp, terms[j], base + from + place);
  for (int offset = kAround / 2; offset > 0; offset /= 2)
    for (int j = 0; j < kSize; ++j) sums[j] += __shfl_xor_sync(kWholeWarp, sums[j], offset);
  for (int half = kSize / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

}  // namespace qat
