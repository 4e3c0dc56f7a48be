#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "tests/cuda/simulator.h"

// The schemas of qat, once more for the simulated kernels, and what draws the simulator's orders.
TORCH_LIBRARY_FRAGMENT(qat_simulated, m) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.getNamespace() != "qat") continue;
    if (const auto op = dispatcher.findSchema(name))
      m.def(c10::FunctionSchema("qat_simulated::" + name.name.substr(5), name.overload_name,
                                op->schema().arguments(), op->schema().returns()));
  }
  m.def("reseed(int seed) -> ()",
        [](int64_t seed) { simulator::reseed(static_cast<uint64_t>(seed)); });
}
