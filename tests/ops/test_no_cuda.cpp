#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

namespace qat {
namespace {

// Calls the kernel that a GPU's tensors would get.
std::string said_on_a_gpu(const c10::OperatorHandle& op) {
  try {
    c10::Stack stack(op.schema().arguments().size());
    op.callBoxedForDispatchKey(c10::DispatchKey::CUDA, stack);
  } catch (const c10::NotImplementedError& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(NoCuda, OperatorsWithKernelsOfTheirOwnSayThatTorchqatWasBuiltWithout) {
  auto& dispatcher = c10::Dispatcher::singleton();
  int seen = 0;
  for (const auto& name : dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CPU)) {
    if (name.getNamespace() != "qat") continue;
    const auto op = dispatcher.findSchemaOrThrow(name.name.c_str(), "");
    if (op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd)) continue;
    EXPECT_EQ(said_on_a_gpu(op),
              "[" + name.name.substr(5) +
                  "] was given tensors on a GPU, but torchqat was built without its CUDA kernels: "
                  "install the CUDA Toolkit, then run pip install --no-build-isolation "
                  "--force-reinstall --no-deps on torchqat again.");
    ++seen;
  }
  EXPECT_GE(seen, 10);
}

TEST(NoCuda, OperatorsMadeOfOthersAreLeftAlone) {
  for (const char* name : {"qat::quant_linear", "qat::packed_linear", "qat::pack"})
    EXPECT_FALSE(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").hasKernelForDispatchKey(
        c10::DispatchKey::CUDA))
        << name;
}

}  // namespace
}  // namespace qat
