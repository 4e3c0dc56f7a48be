#include "qat/ops/fake_quantize.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "qat/ops/checks.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor given(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Whether nobody else sees the memory of `grad`, much as autograd asks before it keeps a gradient as
// it is: that of x may then be written over it. A view holds the tensor that it is of.
bool is_alone(const at::Tensor& grad) {
  if (at::GradMode::is_enabled() || at::isTensorSubclassLike(grad) || grad.use_count() != 1 ||
      !grad.has_storage() || !grad.is_contiguous())
    return false;
  const bool views = grad.is_view();
  return (!views || grad._base().use_count() == 1) && grad.storage().use_count() == (views ? 2 : 1);
}

// Gradients (4) to (6), found in one pass over x. Keeps its inputs, which live anyway; nothing at
// all where the gradient is the identity. Parameters that it found are found again: kept from a
// forward to its backward, those of all layers would take memory that grows with the model.
class FakeQuantize : public torch::autograd::Function<FakeQuantize> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const std::string& text,
                               const OptionalTensor& scale, const OptionalTensor& zero_point,
                               const OptionalTensor& outer_scale,
                               std::optional<at::ScalarType> dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->set_materialize_grads(false);  // parameters that were found have none
    const auto [y, found, zero] = fake_quantize(x, text, scale, zero_point, outer_scale, dtype);
    ctx->mark_non_differentiable({found, zero});
    ctx->saved_data["dtype"] = x.scalar_type();
    const Quantizer quantizer = Quantizer::parse(text);
    if (!quantizer.never_clips()) {
      ctx->saved_data["quantizer"] = text;
      const auto kept = [&](const OptionalTensor& given) { return given.value_or(at::Tensor()); };
      const bool finds = quantizer.finds();
      ctx->save_for_backward({x, finds ? at::Tensor() : kept(scale),
                              finds ? at::Tensor() : kept(zero_point), kept(outer_scale)});
    }
    return {y, found, zero};
  }

  // Takes `grads` by reference: a copy would make two owners of each.
  static variable_list backward(AutogradContext* ctx, variable_list& grads) {
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const auto dtype = ctx->saved_data["dtype"].toScalarType();
    at::Tensor grad = std::exchange(grads[0], {}).to(dtype);
    if (!ctx->saved_data.count("quantizer")) {
      result[0] = grad;
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    const std::string text = ctx->saved_data["quantizer"].toStringRef();
    const OptionalTensor scale = given(saved[1]), zero_point = given(saved[2]),
                         outer = given(saved[3]);
    at::Tensor grad_scale, grad_zero;
    if (is_alone(grad)) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      std::tie(grad_scale, grad_zero) =
          fake_quantize_backward_inplace(grad, saved[0], text, scale, zero_point, outer);
      result[0] = grad;
    } else {
      std::tie(result[0], grad_scale, grad_zero) =
          fake_quantize_backward(grad, saved[0], text, scale, zero_point, outer);
    }
    const Quantizer quantizer = Quantizer::parse(text);
    if (quantizer.mode != Quantizer::Mode::learned) return result;
    result[2] = grad_scale;
    if (saved[2].defined() && !is_named(quantizer.grid)) result[3] = grad_zero;
    return result;
  }
};

FakeQuantized fake_quantize_autograd(const at::Tensor& x, std::string_view quantizer,
                                     const OptionalTensor& scale, const OptionalTensor& zero_point,
                                     const OptionalTensor& outer_scale,
                                     std::optional<at::ScalarType> dtype) {
  const auto outputs =
      FakeQuantize::apply(x, std::string(quantizer), scale, zero_point, outer_scale, dtype);
  return {outputs[0], outputs[1], outputs[2]};
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// The gradient of x, (4), is linear in `grad` and its mask is a constant: its derivative is itself.
class FakeQuantizeBackward : public torch::autograd::Function<FakeQuantizeBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& x,
                               const std::string& text, const OptionalTensor& scale,
                               const OptionalTensor& zero_point,
                               const OptionalTensor& outer_scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->set_materialize_grads(false);
    ctx->saved_data["quantizer"] = text;
    ctx->save_for_backward({x, scale.value_or(at::Tensor()), zero_point.value_or(at::Tensor()),
                            outer_scale.value_or(at::Tensor())});
    const auto [grad_x, grad_scale, grad_zero] =
        fake_quantize_backward(grad, x, text, scale, zero_point, outer_scale);
    return {grad_x, grad_scale, grad_zero};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !grads[1].defined() && !grads[2].defined(),
        "[fake_quantize] double backward is not defined for the gradients of learned scales and "
        "zero points, but for that of x alone.");
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    result[0] = std::get<0>(
        fake_quantize_backward(grads[0], saved[0], ctx->saved_data["quantizer"].toStringRef(),
                               given(saved[1]), given(saved[2]), given(saved[3])));
    return result;
  }
};

Gradients fake_quantize_backward_autograd(const at::Tensor& grad, const at::Tensor& x,
                                          std::string_view quantizer, const OptionalTensor& scale,
                                          const OptionalTensor& zero_point,
                                          const OptionalTensor& outer_scale) {
  if (at::GradMode::is_enabled()) {
    const auto found = FakeQuantizeBackward::apply(grad, x, std::string(quantizer), scale,
                                                   zero_point, outer_scale);
    return {found[0], found[1], found[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return fake_quantize_backward(grad, x, quantizer, scale, zero_point, outer_scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("fake_quantize", &fake_quantize_autograd);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_autograd);
}

}  // namespace qat
