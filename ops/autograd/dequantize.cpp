#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

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
    return {at::Tensor(),
            dequantize_backward(grads[0], saved[0], saved[1], given(saved[2]),
                                ctx->saved_data["block"].toIntVector()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Linear in `grad`, whatever the scale: its derivative is a dequantization.
class DequantizeBackward : public torch::autograd::Function<DequantizeBackward> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& codes,
                            const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                            at::IntArrayRef block) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward(
        {codes, is_offset(zero_point) ? at::Tensor() : zero_point.value_or(at::Tensor())});
    ctx->saved_data["block"] = block.vec();
    ctx->saved_data["dtype"] = grad.scalar_type();
    return dequantize_backward(grad, codes, scale, zero_point, block);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(5);
    result[0] =
        dequantize(saved[0], grads[0], given(saved[1]), ctx->saved_data["block"].toIntVector(),
                   ctx->saved_data["dtype"].toScalarType());
    return result;
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
  return DequantizeBackward::apply(grad, codes, scale, zero_point, block);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("dequantize", &dequantize_autograd);
  m.impl("_dequantize_backward", &dequantize_backward_autograd);
}

}  // namespace qat
