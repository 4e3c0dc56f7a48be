#include "qat/ops/quant_linear.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "qat/ops/call.h"
#include "qat/ops/checks.h"
#include "qat/ops/quantizer.h"

namespace qat {
namespace {

using Optional = OptionalTensor;
using Parameters = Quantizer::Parameters;

void check_quant_linear(const at::Tensor& x, const at::Tensor& weight) {
  check_input("quant_linear", x);
  check_input("quant_linear", weight);
  TORCH_CHECK_VALUE(weight.dim() == 2 && x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1),
                    "[quant_linear] x must end in the columns of weight [out, in], but they are ",
                    x.sym_sizes(), " and ", weight.sym_sizes(), ".");
  TORCH_CHECK_TYPE(
      x.scalar_type() == weight.scalar_type() || weight.scalar_type() == at::kFloat,
      "[quant_linear] x and weight must have one dtype, or weight be float32, but they are ",
      x.scalar_type(), " and ", weight.scalar_type(), ".");
}

// The rounded weight in `dtype`, from what is kept of it where something is.
Quantizer::Result rounded_weight(const Quantizer& quantizer, const at::Tensor& weight,
                                 const Parameters& parameters, at::TensorList kept,
                                 at::ScalarType dtype) {
  if (!quantizer.active() || kept.empty()) return quantizer(weight, parameters, dtype);
  const bool encoded = kept[0].scalar_type() == at::kByte;
  TORCH_CHECK_VALUE(kept.size() == 3 || (kept.size() == 1 && !encoded),
                    "[quant_linear] kept must be empty, a rounded weight, or one or its codes with "
                    "scale and zero point, but are ",
                    kept.size(), " tensors.");
  TORCH_CHECK_VALUE(encoded ? kept[0].dim() == 2 && kept[0].sym_size(0) == weight.sym_size(0)
                            : kept[0].sym_sizes() == weight.sym_sizes(),
                    "[quant_linear] the weight that is kept must have the shape of weight, ",
                    weight.sym_sizes(), ", or its codes the rows, but it has ", kept[0].sym_sizes(),
                    ".");
  Quantizer::Result result;
  if (kept.size() == 3) result.scale = kept[1], result.zero_point = kept[2];
  result.values = encoded ? quantizer.decoded(kept, weight.sym_size(1), dtype) : kept[0].to(dtype);
  return result;
}

at::Tensor quant_linear_kernel(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                               const Optional& weight_scale, const Optional& weight_zero_point,
                               const Optional& input_scale, const Optional& input_zero_point,
                               at::TensorList kept, std::string_view weight_quantizer,
                               std::string_view input_quantizer, const Optional& weight_outer,
                               const Optional& input_outer) {
  check_quant_linear(x, weight);
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor inputs =
      Quantizer::parse(input_quantizer)(x, {input_scale, input_zero_point, input_outer}, dtype)
          .values;
  const at::Tensor weights =
      rounded_weight(Quantizer::parse(weight_quantizer), weight,
                     {weight_scale, weight_zero_point, weight_outer}, kept, dtype)
          .values;
  const bool biased = bias && bias->defined();
  return at::linear(inputs, weights, biased ? Optional(bias->to(dtype)) : std::nullopt);
}

QuantLinearGradients quant_linear_backward_kernel(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const Optional& weight_scale, const Optional& weight_zero_point, const Optional& input_scale,
    const Optional& input_zero_point, at::TensorList kept, std::string_view weight_text,
    std::string_view input_text, const Optional& weight_outer, const Optional& input_outer,
    std::array<bool, 2> needs) {
  const Quantizer weight_quantizer = Quantizer::parse(weight_text),
                  input_quantizer = Quantizer::parse(input_text);
  const Parameters of_weight{weight_scale, weight_zero_point, weight_outer},
      of_input{input_scale, input_zero_point, input_outer};
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor upstream = grad.reshape_symint({-1, weight.sym_size(0)});
  // What is kept has no history for a backward that will be differentiated itself.
  const at::TensorList known = at::GradMode::is_enabled() ? at::TensorList() : kept;
  const at::Tensor none = at::empty({0}, weight.options());
  QuantLinearGradients gradients{none, none, none, none, none, none};
  auto& [grad_x, grad_weight, grad_weight_scale, grad_weight_zero, grad_input_scale,
         grad_input_zero] = gradients;

  // Each rounded tensor goes before the next one comes: they take turns on one buffer.
  Quantizer::Result found;
  if (needs[0]) {
    found = rounded_weight(weight_quantizer, weight, of_weight, known, dtype);
    grad_x = at::mm(upstream, found.values).view_symint(x.sym_sizes());
    found.values.reset();
    std::tie(grad_input_scale, grad_input_zero) =
        input_quantizer.backward_inplace(grad_x, x, of_input, Quantizer::Result());
  }
  if (needs[1]) {
    const at::Tensor inputs =
        input_quantizer(x, of_input, dtype).values.reshape_symint({-1, weight.sym_size(1)});
    grad_weight = at::mm(upstream.t(), inputs).to(weight.scalar_type());
    if (known.size() == 3) found.scale = known[1], found.zero_point = known[2];
    std::tie(grad_weight_scale, grad_weight_zero) =
        weight_quantizer.backward_inplace(grad_weight, weight, of_weight, found);
  }
  return gradients;
}

// One operator; where its own derivative is asked for, as what it is made of.
QuantLinearGradients quant_linear_backward_autograd(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const Optional& weight_scale, const Optional& weight_zero_point, const Optional& input_scale,
    const Optional& input_zero_point, at::TensorList kept, std::string_view weight_text,
    std::string_view input_text, const Optional& weight_outer, const Optional& input_outer,
    std::array<bool, 2> needs) {
  const bool recorded = at::GradMode::is_enabled();
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
  if (!recorded) below_autograd.emplace();
  const auto run = recorded ? quant_linear_backward_kernel : quant_linear_backward;
  return run(grad, x, weight, weight_scale, weight_zero_point, input_scale, input_zero_point, kept,
             weight_text, input_text, weight_outer, input_outer, needs);
}

}  // namespace

at::Tensor quant_linear(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                        const Optional& weight_scale, const Optional& weight_zero_point,
                        const Optional& input_scale, const Optional& input_zero_point,
                        at::TensorList kept, std::string_view weight_quantizer,
                        std::string_view input_quantizer, const Optional& weight_outer_scale,
                        const Optional& input_outer_scale) {
  return call<"qat::quant_linear", decltype(quant_linear)>(
      x, weight, bias, weight_scale, weight_zero_point, input_scale, input_zero_point, kept,
      weight_quantizer, input_quantizer, weight_outer_scale, input_outer_scale);
}

QuantLinearGradients quant_linear_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const Optional& weight_scale, const Optional& weight_zero_point, const Optional& input_scale,
    const Optional& input_zero_point, at::TensorList kept, std::string_view weight_quantizer,
    std::string_view input_quantizer, const Optional& weight_outer_scale,
    const Optional& input_outer_scale, std::array<bool, 2> needs) {
  return call<"qat::_quant_linear_backward", decltype(quant_linear_backward)>(
      grad, x, weight, weight_scale, weight_zero_point, input_scale, input_zero_point, kept,
      weight_quantizer, input_quantizer, weight_outer_scale, input_outer_scale, needs);
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "quant_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? weight_scale, "
      "Tensor? weight_zero_point, Tensor? input_scale, Tensor? input_zero_point, Tensor[] kept, "
      "str weight_quantizer, str input_quantizer, Tensor? weight_outer_scale=None, "
      "Tensor? input_outer_scale=None) -> Tensor");
  m.def(
      "_quant_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? weight_scale, "
      "Tensor? weight_zero_point, Tensor? input_scale, Tensor? input_zero_point, Tensor[] kept, "
      "str weight_quantizer, str input_quantizer, Tensor? weight_outer_scale, "
      "Tensor? input_outer_scale, bool[2] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

// Made of other operators, so one kernel serves every backend.
TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("quant_linear", &quant_linear_kernel);
  m.impl("_quant_linear_backward", &quant_linear_backward_kernel);
}

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("_quant_linear_backward", &quant_linear_backward_autograd);
}

}  // namespace qat
