#include "qat/ops/packed_linear.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

namespace qat {
namespace {

// A result without history would let whatever is trained around it go on with a wrong gradient.
at::Tensor packed_linear_autograd(const at::Tensor& x, const at::Tensor& panels,
                                  const at::Tensor& scale,
                                  const std::optional<at::Tensor>& zero_point,
                                  const std::optional<at::Tensor>& bias, int64_t bits,
                                  int64_t group_size, int64_t out) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && x.requires_grad()),
      "[packed_linear] x must not require a gradient, since packed weights give none; call it "
      "under no_grad, or freeze the parameters that x comes from.");
  const at::AutoDispatchBelowADInplaceOrView below;
  return packed_linear(x, panels, scale, zero_point, bias, bits, group_size, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) { m.impl("packed_linear", &packed_linear_autograd); }

}  // namespace qat
