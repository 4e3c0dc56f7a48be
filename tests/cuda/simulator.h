#pragma once

// Runs CUDA kernels on a CPU, so that their results can be compared with the CPU kernels' where
// there is no GPU. Threads are fibers; those of a block meet at __syncthreads, those of a warp at
// shuffles and votes.
//
// What it shows: results, bit for bit, and whether they hang on an order that a GPU does not
// promise. Blocks, warps and threads take turns, from one place where they meet to the next, in an
// order drawn anew for every launch (reseed). So is the number of blocks, from one to as many as
// are asked for: kernels must stride over what is left. A shuffle, vote or barrier that not all of
// its threads come to is an error.
//
// What it cannot show: speed; the device's own arithmetic, as in approximate divisions; races that
// need two blocks at once, for each runs to its end, or two threads in the midst of a turn. Shared
// memory begins as the block before has left it, not as garbage. It has one dimension of blocks and
// threads, and no shared memory whose size the launch says.
//
// Comes before everything else where a .cu file is compiled as C++ (tests/CMakeLists.txt).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

namespace simulator {

struct Index {
  unsigned x;
};

// The thread that runs now.
extern Index thread_index, block_index, block_size, grid_size;

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Gives `value` to the threads of the warp that `mask` names and returns what each gave; all of them
// must arrive. Valid until the thread exchanges again.
const uint64_t* exchange(unsigned mask, uint64_t value);

// Waits for every thread of the block that has not returned; `line` tells barriers apart.
void barrier(int line);

// Draws the order of all that follows.
void reseed(uint64_t seed);

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

inline int lane() { return static_cast<int>(thread_index.x % kLanes); }

// The value of thread `from`, or one's own where that is in another group of `width` neighbours.
template <typename T>
T shuffle(unsigned mask, T value, int from, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* given = exchange(mask, bits);
  if (from >= 0 && from / width == lane() / width) std::memcpy(&value, &given[from], sizeof(T));
  return value;
}

}  // namespace simulator

#define threadIdx simulator::thread_index
#define blockIdx simulator::block_index
#define blockDim simulator::block_size
#define gridDim simulator::grid_size

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = simulator::kLanes) {
  const int first = simulator::lane() / width * width;
  return simulator::shuffle(mask, value, first + (from & (width - 1)), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = simulator::kLanes) {
  return simulator::shuffle(mask, value, simulator::lane() ^ flipped, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = simulator::kLanes) {
  return simulator::shuffle(mask, value, simulator::lane() - static_cast<int>(by), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = simulator::kLanes) {
  return simulator::shuffle(mask, value, simulator::lane() + static_cast<int>(by), width);
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  const uint64_t* given = simulator::exchange(mask, vote != 0);
  unsigned votes = 0;
  for (int lane = 0; lane < simulator::kLanes; ++lane)
    if (mask >> lane & 1u && given[lane]) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }
inline void __syncwarp(unsigned mask = simulator::kAllLanes) { simulator::exchange(mask, 0); }
inline void __syncthreads(int line = __builtin_LINE()) { simulator::barrier(line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Nobody interrupts a thread between two meeting places.
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = value;
  return before;
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return *at == expected ? atomicExch(at, value) : *at;
}
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at + value));
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, value < *at ? value : *at);
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, *at < value ? value : *at);
}

#define QAT_LAUNCH(kernel, blocks, ...) \
  simulator::launch(blocks, kThreads, [&] { kernel(__VA_ARGS__); })
