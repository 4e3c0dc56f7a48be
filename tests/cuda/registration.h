#pragma once

// The kernels of a .cu file that comes after it are registered as qat_simulated::name for CPU
// tensors.

#include <torch/library.h>
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, k, m)                                                               \
  static void register_simulated(torch::Library& m);                                               \
  static const torch::detail::TorchLibraryInit simulated_library(                                  \
      torch::Library::IMPL, &register_simulated, "qat_simulated", c10::DispatchKey::CPU, __FILE__, \
      __LINE__);                                                                                   \
  void register_simulated(torch::Library& m)
