#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/autograd/no_double_backward.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Codes that stay as they are: the result is linear in the scale, numerics.md (29).
class Dequantize : public torch::autograd::Function<Dequantize> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& codes, const at::Tensor& scale,
                            const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                            at::ScalarType dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({codes, scale, zero_point.value_or(at::Tensor())});
    ctx->saved_data["block"] = block.vec();
    return dequantize(codes, scale, zero_point, block, dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto zero_point = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    return {at::Tensor(),
            dequantize_backward(grads[0], saved[0], saved[1], zero_point,
                                ctx->saved_data["block"].toIntVector()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor dequantize_autograd(const at::Tensor& codes, const at::Tensor& scale,
                               const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                               at::ScalarType dtype) {
  return Dequantize::apply(codes, scale, zero_point, block, dtype);
}

at::Tensor dequantize_backward_autograd(const at::Tensor& grad, const at::Tensor& codes,
                                        const at::Tensor& scale,
                                        const std::optional<at::Tensor>& zero_point,
                                        at::IntArrayRef block) {
  refuse_double_backward("dequantize", grad, scale);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return dequantize_backward(grad, codes, scale, zero_point, block);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("dequantize", &dequantize_autograd);
  m.impl("_dequantize_backward", &dequantize_backward_autograd);
}

}  // namespace qat
