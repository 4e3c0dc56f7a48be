#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

namespace qat {

// Straight-through gradients have no useful derivative of their own: refuse one rather than return
// zeros that look like an answer.
template <typename... Tensors>
void refuse_double_backward(const char* op, const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(at::GradMode::is_enabled() && (tensors.requires_grad() || ...)),
                              "[", op,
                              "] double backward is not defined for straight-through gradients.");
}

}  // namespace qat
