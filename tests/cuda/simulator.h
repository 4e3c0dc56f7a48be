#pragma once

// Runs CUDA kernels on a CPU, so that their results can be compared with the CPU kernels' where
// there is no GPU. The 32 threads of a warp are fibers that meet at every shuffle; warps run one
// after the other. What it cannot show: speed, races between warps, the device's own arithmetic.
//
// Included before everything else when a .cu file is compiled as C++ (-include).

#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

namespace simulator {

struct Index {
  unsigned x;
};

// The thread that runs now.
extern Index thread_index, block_index, block_size, grid_size;

// Gives `value` to the warp and returns that of thread `from`; all 32 must arrive.
double exchange(double value, int from);

struct Call {
  virtual ~Call() = default;
  virtual void operator()() const = 0;
};
void run(int blocks, int threads, const Call& thread);

template <typename Body>
struct BodyCall final : Call {
  explicit BodyCall(const Body& body) : body_(body) {}
  void operator()() const override { body_(); }
  const Body& body_;
};

template <typename Body>
void launch(int blocks, int threads, const Body& body) {
  run(blocks, threads, BodyCall<Body>(body));
}

}  // namespace simulator

#define threadIdx simulator::thread_index
#define blockIdx simulator::block_index
#define blockDim simulator::block_size
#define gridDim simulator::grid_size

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return static_cast<T>(simulator::exchange(static_cast<double>(value), from % 32));
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return static_cast<T>(
      simulator::exchange(static_cast<double>(value), static_cast<int>(threadIdx.x % 32) ^ mask));
}

#define QAT_LAUNCH(kernel, blocks, ...) \
  simulator::launch(blocks, kThreads, [&] { kernel(__VA_ARGS__); })

// The kernels are registered as qat_simulated::name for CPU tensors.
#include <torch/library.h>
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, k, m)                                                               \
  static void register_simulated(torch::Library& m);                                               \
  static const torch::detail::TorchLibraryInit simulated_library(                                  \
      torch::Library::IMPL, &register_simulated, "qat_simulated", c10::DispatchKey::CPU, __FILE__, \
      __LINE__);                                                                                   \
  void register_simulated(torch::Library& m)
