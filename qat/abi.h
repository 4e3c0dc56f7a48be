#pragma once

// Stops a program from being compiled to something that its libraries are not.

#include <torch/version.h>

#include <string>  // for the macros of the standard library

#include "qat/built_with.h"

#if __cplusplus < 202002L
#error "torchqat's headers need C++20: link qat::qat, which asks for it, or pass -std=c++20."
#endif

static_assert(TORCH_VERSION_MAJOR == QAT_TORCH_MAJOR && TORCH_VERSION_MINOR == QAT_TORCH_MINOR,
              "torchqat was built against another version of LibTorch than this program is: build "
              "it against the same.");
#if defined(_GLIBCXX_USE_CXX11_ABI)
static_assert(_GLIBCXX_USE_CXX11_ABI == 1,
              "torchqat and LibTorch have the C++11 ABI of strings, but this program the old one: "
              "remove -D_GLIBCXX_USE_CXX11_ABI=0.");
#endif
