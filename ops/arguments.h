#pragma once

// What the launchers of both backends share: dispatch on dtype, and optional arguments.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <optional>

#define QAT_DISPATCH_FLOAT(type, name, ...)                                      \
  AT_DISPATCH_SWITCH(type, name,                                                 \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE( \
                         at::kHalf, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

namespace qat {

// Calls body(in, out) with values of the element types of argument and result: both the same, or
// a half result of a float32 argument.
template <typename Body>
void dispatch_in_out(at::ScalarType in, at::ScalarType out, const Body& body) {
  if (in == out) {
    QAT_DISPATCH_FLOAT(in, "fake_quantize", [&] { body(scalar_t(), scalar_t()); });
  } else {
    QAT_DISPATCH_FLOAT(out, "fake_quantize", [&] { body(float(), scalar_t()); });
  }
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

template <typename scalar_t>
const scalar_t* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<scalar_t>() : nullptr;
}

}  // namespace qat
