#pragma once

// The sum of a segment in the order of LaneSum (ops/cpu/lane_sum.h), whose element i joins lane i %
// 32, where threads hold vectors of kSize neighbours.

#include "qat/ops/cuda/launch.cuh"

namespace qat {

// Of a segment in `lanes` neighbouring threads with one vector each.
template <int kSize>
__device__ __forceinline__ float lane_sum(const float (&terms)[kSize], int lanes) {
  constexpr int kAround = kWarp / kSize;  // threads that hold 32 neighbouring elements
  const int lane = lane_of_warp();
  const int base = lane & ~(lanes - 1), place = lane % kAround;
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

// Of a segment that a warp goes through, 32 vectors a round: the terms of a round change places in
// `room`, kSize * 32 floats of shared memory that are the warp's own, so that each thread adds up
// its own lane.
template <int kSize>
__device__ __forceinline__ void add_to_lane(const float (&terms)[kSize], float* room, float& sum) {
  if constexpr (kSize == 1) {
    sum += terms[0];
  } else {
    const int lane = lane_of_warp();
    __syncwarp();  // the round before has been read
    for (int j = 0; j < kSize; ++j) room[lane * kSize + j] = terms[j];
    __syncwarp();
    for (int j = 0; j < kSize; ++j) sum += room[j * kWarp + lane];
  }
}

}  // namespace qat
