#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <memory>

namespace qat {

// What this thread's tensors take at most, beyond those that it had, while `body` runs.
template <typename Body>
int64_t peak_memory(const Body& body) {
  struct Peak : c10::MemoryReportingInfoBase {
    int64_t now = 0, most = 0;

    void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
      now += bytes;
      most = std::max(most, now);
    }
    bool memoryProfilingEnabled() const override { return true; }
  };
  const auto peak = std::make_shared<Peak>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, peak);
  const at::Tensor result = body();
  return peak->most;
}

}  // namespace qat
