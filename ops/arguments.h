#pragma once

// What the launchers of both backends share: dispatch on dtype, and optional arguments.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <optional>

#define QAT_DISPATCH_FLOAT(type, name, ...)                       \
  AT_DISPATCH_SWITCH(type, name,                                  \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__)    \
                         AT_DISPATCH_CASE(at::kHalf, __VA_ARGS__) \
                             AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

namespace qat {

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

template <typename scalar_t>
const scalar_t* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<scalar_t>() : nullptr;
}

}  // namespace qat
