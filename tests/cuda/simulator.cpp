#include "tests/cuda/simulator.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ucontext.h>

#include <array>
#include <memory>
#include <vector>

#undef TORCH_LIBRARY_IMPL

namespace simulator {

Index thread_index{}, block_index{}, block_size{}, grid_size{};

namespace {

constexpr int kLanes = 32;
constexpr size_t kStack = 256 << 10;

// The warp that runs now. Fibers yield to the scheduler, which goes round them until all are done.
struct Warp {
  std::array<ucontext_t, kLanes> fibers;
  std::array<std::vector<char>, kLanes> stacks;
  std::array<double, kLanes> values;
  std::array<bool, kLanes> done;
  ucontext_t scheduler;
  int lane = 0;
  const Call* thread = nullptr;
};
Warp warp;

void fiber() {
  (*warp.thread)();
  warp.done[warp.lane] = true;
  swapcontext(&warp.fibers[warp.lane], &warp.scheduler);
}

void yield() { swapcontext(&warp.fibers[warp.lane], &warp.scheduler); }

void run_warp(unsigned first_thread, const Call& thread) {
  warp.thread = &thread;
  warp.done.fill(false);
  for (int lane = 0; lane < kLanes; ++lane) {
    warp.stacks[lane].resize(kStack);
    getcontext(&warp.fibers[lane]);
    warp.fibers[lane].uc_stack.ss_sp = warp.stacks[lane].data();
    warp.fibers[lane].uc_stack.ss_size = kStack;
    warp.fibers[lane].uc_link = nullptr;
    makecontext(&warp.fibers[lane], &fiber, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (warp.done[lane]) continue;
      busy = true;
      warp.lane = lane;
      thread_index.x = first_thread + static_cast<unsigned>(lane);
      swapcontext(&warp.scheduler, &warp.fibers[lane]);
    }
  }
}

}  // namespace

double exchange(double value, int from) {
  warp.values[warp.lane] = value;
  yield();  // everyone has given
  const double received = warp.values[from];
  yield();  // everyone has received
  return received;
}

void run(int blocks, int threads, const Call& thread) {
  // A few blocks suffice to see the strides: kernels loop over what is left.
  grid_size.x = static_cast<unsigned>(std::min(blocks, 3));
  block_size.x = static_cast<unsigned>(threads);
  for (unsigned block = 0; block < grid_size.x; ++block)
    for (unsigned first = 0; first < block_size.x; first += kLanes) {
      block_index.x = block;
      run_warp(first, thread);
    }
}

}  // namespace simulator

// The schemas of qat, once more for the simulated kernels.
static const torch::detail::TorchLibraryInit simulated_schemas(
    torch::Library::FRAGMENT,
    [](torch::Library& m) {
      for (const char* name :
           {"fake_quantize", "_fake_quantize_backward", "_fake_quantize_backward_",
            "fake_quantize_dynamic", "fake_quantize_learned", "_fake_quantize_learned_backward",
            "_fake_quantize_learned_backward_", "choose_qparams", "round_qparams", "quantize",
            "quantize_with_feedback", "dequantize", "encode", "decode"}) {
        const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
            (std::string("qat::") + name).c_str(), "");
        const auto& schema = op.schema();
        m.def(c10::FunctionSchema(std::string("qat_simulated::") + name, "", schema.arguments(),
                                  schema.returns()));
      }
    },
    "qat_simulated", std::nullopt, __FILE__, __LINE__);
