#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

// Compiled where the CUDA sources are not: what they would bring then says so of a GPU's tensors,
// where the dispatcher would list the backends that there are.

namespace qat {
namespace {

void refuse(const c10::OperatorHandle& op, c10::Stack* /*stack*/) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "[", std::string_view(op.schema().name()).substr(std::string_view("qat::").size()),
      "] was given tensors on a GPU, but torchqat was built without its CUDA kernels: install the "
      "CUDA Toolkit, then run pip install --no-build-isolation --force-reinstall --no-deps on "
      "torchqat again.");
}

}  // namespace

// All operators but those made of others. They are registered by now: this is the last source
// of the library, and static objects are made in the order that they are linked in.
TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.getNamespace() != "qat") continue;
    const auto op = dispatcher.findSchema(name);
    if (op && !op->hasComputedKernelForDispatchKey(c10::DispatchKey::CUDA))
      m.impl(name.name.c_str(), torch::CppFunction::makeFromBoxedFunction<&refuse>());
  }
}

}  // namespace qat
