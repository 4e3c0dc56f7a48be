#pragma once

// Launching, and reductions over the threads of a warp in a fixed order. Only c10/cuda headers are
// included, so that the files compile beside a CPU build of torch.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

// Called under a device guard. Tests run the kernels on a CPU, where a launch is a call
// (tests/cuda/simulator.h).
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

__device__ __forceinline__ int64_t this_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}
__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }

// Reductions over the `lanes` neighbouring threads of a group, a power of two. A butterfly: every
// thread ends with the same value, added in the same order every run (LaneSum, ops/cpu/lane_sum.h).
template <typename T>
__device__ __forceinline__ T warp_sum(T value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}
__device__ __forceinline__ float warp_min(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value = fminf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}
__device__ __forceinline__ float warp_max(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

// Division by a number that the host knows: a multiplication, for dividends of up to 31 bits.
class Divider {
 public:
  explicit Divider(int64_t divisor) : divisor_(divisor) {
    while (shift_ < 31 && int64_t{1} << shift_ < divisor) ++shift_;
    if (divisor <= int64_t{1} << 31)
      magic_ = static_cast<uint32_t>(
          ((int64_t{1} << 32) * ((int64_t{1} << shift_) - divisor)) / divisor + 1);
  }
  __device__ __forceinline__ int64_t operator()(int64_t dividend) const {
    if (dividend >> 31) return dividend / divisor_;
    const auto n = static_cast<uint32_t>(dividend);
    return (static_cast<uint32_t>((uint64_t{n} * magic_) >> 32) + n) >> shift_;
  }

 private:
  int64_t divisor_;
  uint32_t magic_ = 0;  // of a divisor beyond all such dividends
  int shift_ = 0;
};

}  // namespace qat
