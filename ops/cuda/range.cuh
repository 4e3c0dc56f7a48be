#pragma once

// The range of blocks: what a thread has seen of one, joined over the threads that share it.

#include "qat/ops/cuda/walk.cuh"
#include "qat/ops/parameters.h"

namespace qat {

// From what range to which parameters, (9).
struct Finder {
  Grid grid;
  Levels levels;
  ScaleCode code;
  bool stored;  // else they are when all are known

  explicit Finder(const Quantizer& quantizer)
      : grid(quantizer.grid),
        levels(quantizer.levels()),
        code(quantizer.scale_code),
        stored(!quantizer.has_outer_scale()) {}
  __device__ __forceinline__ QParams operator()(float low, float high) const {
    return stored ? qparams_of(low, high, grid, levels, code)
                  : unstored_qparams(low, high, grid, levels);
  }
};

// Where what was found goes to.
struct Found {
  float* scale;
  int8_t* zero_point;
  float* offset;  // on the grid of offsets, in place of zero points

  explicit Found(const FoundTensors& to)
      : scale(to.scale.mutable_data_ptr<float>()), zero_point(nullptr), offset(nullptr) {
    if (to.zero_point.scalar_type() == at::kChar)
      zero_point = to.zero_point.mutable_data_ptr<int8_t>();
    else
      offset = to.zero_point.mutable_data_ptr<float>();
  }
  __device__ __forceinline__ void store(int64_t block, QParams params) const {
    scale[block] = params.scale;
    if (zero_point)
      zero_point[block] = static_cast<int8_t>(params.zero_point);
    else
      offset[block] = params.zero_point;
  }
};

// Smallest and largest finite element, or with one end the largest magnitude as `high`; low > high
// when there is none.
template <bool kEnds>
struct SeenRange {
  float low = kEnds ? FLT_MAX : 0.0f;
  float high = -FLT_MAX;

  __device__ __forceinline__ void join(SeenRange other) {
    if (kEnds) low = fminf(low, other.low);
    high = fmaxf(high, other.high);
  }

  // fminf and fmaxf leave NaN out; infinities are rare enough to look again.
  template <typename T, int kSize>
  __device__ __forceinline__ void see(const Vector<T, kSize>& x) {
    SeenRange seen;
    for (int j = 0; j < kSize; ++j) seen.see(static_cast<float>(x.at[j]));
    if (!is_finite(seen.high) || !is_finite(seen.low)) {
      seen = {};
      for (int j = 0; j < kSize; ++j)
        if (is_finite(static_cast<float>(x.at[j]))) seen.see(static_cast<float>(x.at[j]));
    }
    join(seen);
  }
  template <int kSize, typename T>
  __device__ __forceinline__ void see(const T* x, const Share& share) {
    for (int64_t at = share.first + share.lane; at < share.last; at += share.lanes)
      see(load<kSize>(x, at));
  }

  // Of `lanes` neighbouring threads: a power of two in a warp, or those of a whole thread block.
  __device__ __forceinline__ SeenRange over(int lanes) const {
    const int in_warp = lanes < kWarp ? lanes : kWarp;
    SeenRange all{kEnds ? warp_min(low, in_warp) : low, warp_max(high, in_warp)};
    if (lanes <= kWarp) return all;
    __shared__ float lows[kThreads / kWarp], highs[kThreads / kWarp];
    __syncthreads();  // those of the round before have been read
    lows[threadIdx.x / kWarp] = all.low;
    highs[threadIdx.x / kWarp] = all.high;
    __syncthreads();
    for (int warp = 0; warp < kThreads / kWarp; ++warp) all.join({lows[warp], highs[warp]});
    return all;
  }

 private:
  __device__ __forceinline__ void see(float value) {
    if (kEnds) low = fminf(low, value);
    high = fmaxf(high, kEnds ? value : fabsf(value));
  }
};

}  // namespace qat
