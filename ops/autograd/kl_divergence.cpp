#include "qat/ops/kl_divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/autograd/no_double_backward.h"
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
  const at::Tensor share = temperature * temperature / count_of(student, counted);
  const auto [kl, gradient] =
      kl_divergence(student, teacher, temperature, counted,
                    factor ? OptionalTensor(share * *factor) : std::nullopt);
  return {kl.sum(at::kDouble).to(at::kFloat) * share, gradient};
}

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
    refuse_double_backward("forward_kl", grads[0]);
    variable_list result(5);
    if (const auto kept = ctx->saved_data.find("gradient"); kept != ctx->saved_data.end()) {
      const at::Tensor gradient = kept->second.toTensor();
      ctx->saved_data.erase(kept);
      result[0] = gradient.mul_(grads[0]);
      return result;
    }
    const auto saved = ctx->get_saved_variables();
    const double temperature = ctx->saved_data["temperature"].toDouble();
    const OptionalTensor counted = saved[2].defined() ? OptionalTensor(saved[2]) : std::nullopt;
    result[0] = mean_kl(saved[0], saved[1], temperature, counted, grads[0]).second;
    return result;
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
