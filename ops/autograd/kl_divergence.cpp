#include "qat/ops/kl_divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Over how many tokens the mean is, [] float32, read on the device.
at::Tensor count_of(const at::Tensor& student, const OptionalTensor& counted) {
  if (counted) return counted->sum().clamp_min(1).to(at::kFloat);
  c10::SymInt tokens = 1;
  for (const c10::SymInt& size : student.sym_sizes().slice(0, student.dim() - 1))
    tokens = tokens * size;
  return at::full_symint({}, tokens.max(1), student.options().dtype(at::kFloat));
}

// The mean, and the gradient of `factor` times it where one is given.
std::pair<at::Tensor, at::Tensor> mean_kl(const at::Tensor& student, const at::Tensor& teacher,
                                          double temperature, const OptionalTensor& counted,
                                          const OptionalTensor& factor) {
  check_temperature(temperature);  // before its square is a float32
  const at::Tensor share = temperature * temperature / count_of(student, counted);
  const auto [kl, gradient] =
      kl_divergence(student, teacher, temperature, counted,
                    factor ? OptionalTensor(share * *factor) : std::nullopt);
  return {kl.sum(at::kDouble).to(at::kFloat) * share, gradient};
}

// The gradient as it was found, as a constant: whoever differentiates it is told that it is none.
class GradientOfKl : public torch::autograd::Function<GradientOfKl> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& gradient,
                            const at::Tensor& /*student*/, const at::Tensor& /*upstream*/) {
    return gradient;
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "[forward_kl] double backward is not defined, since the gradient is found with the value; "
        "write the divergence with torch.log_softmax where its second derivative is needed.");
  }
};

class ForwardKl : public torch::autograd::Function<ForwardKl> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& student,
                            const at::Tensor& teacher, double temperature,
                            const OptionalTensor& counted, bool at_once) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    OptionalTensor one;
    if (at_once) one = at::full({}, 1.0, student.options().dtype(at::kFloat));
    const auto [mean, gradient] = mean_kl(student, teacher, temperature, counted, one);
    ctx->saved_data["temperature"] = temperature;
    // The gradient goes with the first backward; what another one needs to find it again stays.
    if (at_once) ctx->saved_data["gradient"] = gradient;
    ctx->save_for_backward({student, teacher, counted.value_or(at::Tensor())});
    return mean;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(5);
    result[0] = gradient_of(ctx, grads[0]);
    if (at::GradMode::is_enabled())
      result[0] = GradientOfKl::apply(result[0], ctx->get_saved_variables()[0], grads[0]);
    return result;
  }

 private:
  static at::Tensor gradient_of(AutogradContext* ctx, const at::Tensor& upstream) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (const auto kept = ctx->saved_data.find("gradient"); kept != ctx->saved_data.end()) {
      const at::Tensor gradient = kept->second.toTensor();
      ctx->saved_data.erase(kept);
      return gradient.mul_(upstream);
    }
    const auto saved = ctx->get_saved_variables();
    const double temperature = ctx->saved_data["temperature"].toDouble();
    const OptionalTensor counted = saved[2].defined() ? OptionalTensor(saved[2]) : std::nullopt;
    return mean_kl(saved[0], saved[1], temperature, counted, upstream).second;
  }
};

at::Tensor forward_kl_autograd(const at::Tensor& student, const at::Tensor& teacher,
                               double temperature, const OptionalTensor& counted) {
  const bool at_once =
      at::GradMode::is_enabled() && student.requires_grad() && student.scalar_type() != at::kHalf;
  return ForwardKl::apply(student, teacher.detach(), temperature, counted, at_once);
}

at::Tensor forward_kl_alone(const at::Tensor& student, const at::Tensor& teacher,
                            double temperature, const OptionalTensor& counted) {
  return mean_kl(student, teacher, temperature, counted, {}).first;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) { m.impl("forward_kl", &forward_kl_autograd); }
TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) { m.impl("forward_kl", &forward_kl_alone); }

}  // namespace qat
