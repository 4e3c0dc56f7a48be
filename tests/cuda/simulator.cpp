#include "tests/cuda/simulator.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace simulator {

Index thread_index{}, block_index{}, block_size{}, grid_size{};

namespace {

constexpr size_t kStack = 256 << 10;
// More of them run no other code.
constexpr int kMostBlocks = 64;

enum class State { kReady, kAtExchange, kAtBarrier, kDone };

// A fiber that runs one thread of a block after another.
struct Thread {
  ucontext_t place;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  unsigned mask = 0;  // of the threads to exchange with
  uint64_t given = 0;
  int line = 0;  // of the barrier
};

struct Warp {
  std::array<uint64_t, kLanes> received;
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<Warp> warps;
ucontext_t scheduler;
const Call* body = nullptr;
std::mt19937_64 random;

Thread& running() { return *threads[thread_index.x]; }

void wait_as(State state) {
  running().state = state;
  swapcontext(&running().place, &scheduler);
}

void fiber() {
  while (true) {
    (*body)();
    wait_as(State::kDone);
  }
}

void add_thread() {
  threads.push_back(std::make_unique<Thread>());
  Thread& thread = *threads.back();
  thread.stack = std::unique_ptr<char[]>(new char[kStack]);
  getcontext(&thread.place);
  thread.place.uc_stack.ss_sp = thread.stack.get();
  thread.place.uc_stack.ss_size = kStack;
  thread.place.uc_link = nullptr;
  makecontext(&thread.place, &fiber, 0);
}

// Fibers stand in the middle of a kernel then, and are made anew.
[[noreturn]] void fail(const char* message) {
  threads.clear();
  throw std::logic_error(message);
}

size_t lanes_of(size_t warp) { return std::min<size_t>(block_size.x - warp * kLanes, kLanes); }

template <typename Visit>
void visit_lanes(size_t warp, const Visit& visit) {
  for (size_t lane = 0; lane < lanes_of(warp); ++lane)
    visit(lane, *threads[warp * kLanes + lane]);
}

// The threads of a warp go on to where each has to wait; then those that exchange have met. Returns
// whether any did.
bool advance(size_t warp) {
  const size_t lanes = lanes_of(warp);
  const bool backwards = random() % 2 != 0;
  for (size_t i = 0; i < lanes; ++i) {
    const size_t thread = warp * kLanes + (backwards ? lanes - 1 - i : i);
    if (threads[thread]->state != State::kReady) continue;
    thread_index.x = static_cast<unsigned>(thread);
    swapcontext(&scheduler, &threads[thread]->place);
  }
  unsigned met = 0;
  visit_lanes(warp, [&](size_t lane, Thread& thread) {
    if (thread.state == State::kAtExchange) met |= 1u << lane;
  });
  visit_lanes(warp, [&](size_t lane, Thread& thread) {
    if (thread.state != State::kAtExchange) return;
    if (thread.mask & ~met) fail("A shuffle or vote waits for a thread that does not come to it.");
    warps[warp].received[lane] = thread.given;
    thread.state = State::kReady;
  });
  return met != 0;
}

// Lets the threads of a block pass the barrier that all of them have reached; none is there when
// all have returned.
std::vector<size_t> pass_barrier() {
  std::vector<size_t> going;
  int line = 0;
  for (size_t warp = 0; warp * kLanes < block_size.x; ++warp) {
    bool here = false;
    visit_lanes(warp, [&](size_t, Thread& thread) {
      if (thread.state != State::kAtBarrier) return;
      if (line != 0 && thread.line != line) fail("Threads of one block wait at two barriers.");
      line = thread.line;
      thread.state = State::kReady;
      here = true;
    });
    if (here) going.push_back(warp);
  }
  return going;
}

void run_block() {
  for (unsigned i = 0; i < block_size.x; ++i) threads[i]->state = State::kReady;
  std::vector<size_t> going((block_size.x + kLanes - 1) / kLanes);
  std::iota(going.begin(), going.end(), size_t{0});
  while (!going.empty()) {
    size_t& next = going[random() % going.size()];
    if (advance(next)) continue;
    next = going.back();
    going.pop_back();
    if (going.empty()) going = pass_barrier();
  }
}

// Now all blocks that are asked for, now fewer.
unsigned draw_grid(int asked) {
  const auto most = static_cast<unsigned>(std::min(asked, kMostBlocks));
  return random() % 2 != 0 ? most : 1 + static_cast<unsigned>(random() % most);
}

}  // namespace

const uint64_t* exchange(unsigned mask, uint64_t value) {
  running().mask = mask;
  running().given = value;
  wait_as(State::kAtExchange);
  return warps[thread_index.x / kLanes].received.data();
}

void barrier(int line) {
  running().line = line;
  wait_as(State::kAtBarrier);
}

void reseed(uint64_t seed) { random.seed(seed); }

void run(int blocks, int threads_per_block, const Call& thread) {
  if (blocks < 1) throw std::logic_error("A kernel is launched in no blocks.");
  body = &thread;
  grid_size.x = draw_grid(blocks);
  block_size.x = static_cast<unsigned>(threads_per_block);
  while (threads.size() < block_size.x) add_thread();
  warps.resize(threads.size() / kLanes + 1);
  std::vector<unsigned> order(grid_size.x);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned block : order) {
    block_index.x = block;
    run_block();
  }
}

}  // namespace simulator
