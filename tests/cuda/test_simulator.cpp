#include "tests/cuda/simulator.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <stdexcept>
#include <vector>

// What the simulator must do as a GPU does, and what it must bring to light.
namespace {

constexpr int kThreads = 256;
constexpr int kSeeds = 20;

// A sum over the block, as reductions on a GPU are written.
float block_sum(float value, bool with_barrier) {
  __shared__ float partial[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  if (with_barrier) __syncthreads();
  float sum = 0.0f;
  for (const float part : partial) sum += part;
  if (with_barrier) __syncthreads();  // before the next sum overwrites what is read here
  return sum;
}

// Each block adds up rows of `kThreads` numbers.
void sum_rows(const float* in, int rows, float* out, bool with_barrier) {
  for (int row = static_cast<int>(blockIdx.x); row < rows; row += static_cast<int>(gridDim.x)) {
    const float sum = block_sum(in[row * kThreads + static_cast<int>(threadIdx.x)], with_barrier);
    if (threadIdx.x == 0) out[row] = sum;
  }
}

std::vector<float> sums_of_rows(int rows, bool with_barrier) {
  std::vector<float> in(rows * kThreads), out(rows);
  std::iota(in.begin(), in.end(), 0.0f);
  QAT_LAUNCH(sum_rows, rows, in.data(), rows, out.data(), with_barrier);
  return out;
}

std::vector<float> expected_sums(int rows) {
  std::vector<float> sums;
  for (int row = 0; row < rows; ++row)
    sums.push_back(kThreads * (row * kThreads + (kThreads - 1) / 2.0f));
  return sums;
}

TEST(Simulator, SharedMemoryAndBarriers) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    simulator::reseed(seed);
    EXPECT_EQ(sums_of_rows(9, true), expected_sums(9)) << seed;
  }
}

TEST(Simulator, AMissingBarrierIsSeen) {
  simulator::reseed(0);
  int wrong = 0;
  for (int i = 0; i < kSeeds; ++i) wrong += sums_of_rows(9, false) != expected_sums(9);
  EXPECT_EQ(wrong, kSeeds);
}

TEST(Simulator, BlocksTakeTurnsInAnyOrderAndNumber) {
  std::set<std::vector<unsigned>> orders;
  std::set<size_t> numbers;
  for (int seed = 0; seed < kSeeds; ++seed) {
    simulator::reseed(seed);
    std::vector<unsigned> order;
    simulator::launch(7, kThreads, [&] {
      if (threadIdx.x == 0) order.push_back(blockIdx.x);
    });
    EXPECT_EQ(std::set(order.begin(), order.end()).size(), order.size());
    EXPECT_LE(order.size(), 7u);
    numbers.insert(order.size());
    if (order.size() == 7) orders.insert(order);
  }
  EXPECT_GE(orders.size(), 5u);
  EXPECT_GE(numbers.size(), 3u);
}

TEST(Simulator, WarpsTakeTurnsInAnyOrder) {
  std::set<std::vector<unsigned>> orders;
  for (int seed = 0; seed < kSeeds; ++seed) {
    simulator::reseed(seed);
    std::vector<unsigned> order;
    simulator::launch(1, kThreads, [&] {
      __syncwarp();
      order.push_back(threadIdx.x);
    });
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), static_cast<size_t>(kSeeds));
}

TEST(Simulator, TheSameSeedGivesTheSameOrder) {
  const auto order = [] {
    std::vector<unsigned> order;
    simulator::reseed(3);
    simulator::launch(5, 64, [&] { order.push_back(blockIdx.x * 64 + threadIdx.x); });
    return order;
  };
  EXPECT_EQ(order(), order());
}

// What each lane of one warp gets.
template <typename Body>
auto of_lanes(const Body& body) {
  std::vector<decltype(body(0))> got(32);
  simulator::launch(1, 32, [&] { got[threadIdx.x] = body(static_cast<int>(threadIdx.x)); });
  return got;
}

TEST(Simulator, Shuffles) {
  const auto given = [](int lane) { return int64_t{1} << 60 | lane; };
  const auto up = of_lanes([&](int lane) { return __shfl_up_sync(~0u, given(lane), 2, 8); });
  const auto down = of_lanes([&](int lane) { return __shfl_down_sync(~0u, given(lane), 2, 8); });
  const auto flipped = of_lanes([&](int lane) { return __shfl_xor_sync(~0u, given(lane), 3); });
  const auto third = of_lanes([&](int lane) { return __shfl_sync(~0u, given(lane), 3, 8); });
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(up[lane], given(lane % 8 < 2 ? lane : lane - 2));
    EXPECT_EQ(down[lane], given(lane % 8 > 5 ? lane : lane + 2));
    EXPECT_EQ(flipped[lane], given(lane ^ 3));
    EXPECT_EQ(third[lane], given(lane / 8 * 8 + 3));
  }
}

TEST(Simulator, VotesAmongThoseOfTheMask) {
  const auto odd = of_lanes([](int lane) { return __ballot_sync(~0u, lane % 2); });
  const auto half = of_lanes([](int lane) {
    const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
    return __any_sync(mask, lane == 3) * 2 + __all_sync(mask, lane > 15);
  });
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(odd[lane], 0xaaaaaaaau);
    EXPECT_EQ(half[lane], lane < 16 ? 2 : 1);
  }
}

TEST(Simulator, Atomics) {
  int sum = 0, most = -1, least = 99;
  float halves = 0.0f;
  QAT_LAUNCH(
      [&] {
        const int i = static_cast<int>(threadIdx.x);
        atomicAdd(&sum, i);
        atomicAdd(&halves, 0.5);
        atomicMax(&most, i);
        atomicMin(&least, i);
      },
      1);
  EXPECT_EQ(sum, kThreads * (kThreads - 1) / 2);
  EXPECT_EQ(halves, kThreads / 2.0f);
  EXPECT_EQ(most, kThreads - 1);
  EXPECT_EQ(least, 0);
  EXPECT_EQ(atomicCAS(&least, 0, 5), 0);
  EXPECT_EQ(atomicCAS(&least, 0, 6), 5);
  EXPECT_EQ(least, 5);
}

TEST(Simulator, WhatNotAllThreadsComeToIsAnError) {
  const auto shuffle_of_some = [] {
    if (threadIdx.x % 32 < 31) __shfl_xor_sync(~0u, 1, 1);
  };
  const auto two_barriers = [] {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  };
  EXPECT_THROW(simulator::launch(1, kThreads, shuffle_of_some), std::logic_error);
  EXPECT_THROW(simulator::launch(1, kThreads, two_barriers), std::logic_error);
  EXPECT_THROW(simulator::launch(0, kThreads, [] {}), std::logic_error);
  EXPECT_EQ(sums_of_rows(3, true), expected_sums(3));  // which runs as if nothing had been
}

TEST(Simulator, ThreadsThatReturnedAreNotWaitedFor) {
  int passed = 0;
  simulator::launch(1, kThreads, [&] {
    if (threadIdx.x >= 100) return;
    __syncthreads();
    ++passed;
  });
  EXPECT_EQ(passed, 100);
}

}  // namespace
