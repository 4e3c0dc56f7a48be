#include "qat/ops/fake_quantize.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/autograd/no_double_backward.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Gradient (4). Keeps `x` itself, which is the weight or an activation that lives anyway.
class FakeQuantize : public torch::autograd::Function<FakeQuantize> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& scale,
                            const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                            int64_t quant_min, int64_t quant_max,
                            std::optional<at::ScalarType> dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({x, scale, zero_point.value_or(at::Tensor())});
    ctx->saved_data["block"] = block.vec();
    ctx->saved_data["quant_min"] = quant_min;
    ctx->saved_data["quant_max"] = quant_max;
    return fake_quantize(x, scale, zero_point, block, quant_min, quant_max, dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto zero_point = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const at::Tensor grad_x = fake_quantize_backward(
        grads[0].to(saved[0].scalar_type()), saved[0], saved[1], zero_point,
        ctx->saved_data["block"].toIntVector(), ctx->saved_data["quant_min"].toInt(),
        ctx->saved_data["quant_max"].toInt());
    return {grad_x, {}, {}, {}, {}, {}, {}};
  }
};

at::Tensor fake_quantize_autograd(const at::Tensor& x, const at::Tensor& scale,
                                  const std::optional<at::Tensor>& zero_point,
                                  at::IntArrayRef block, int64_t quant_min, int64_t quant_max,
                                  std::optional<at::ScalarType> dtype) {
  return FakeQuantize::apply(x, scale, zero_point, block, quant_min, quant_max, dtype);
}

at::Tensor fake_quantize_backward_autograd(const at::Tensor& grad, const at::Tensor& x,
                                           const at::Tensor& scale,
                                           const std::optional<at::Tensor>& zero_point,
                                           at::IntArrayRef block, int64_t quant_min,
                                           int64_t quant_max) {
  refuse_double_backward("fake_quantize", grad, x);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return fake_quantize_backward(grad, x, scale, zero_point, block, quant_min, quant_max);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("fake_quantize", &fake_quantize_autograd);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_autograd);
}

}  // namespace qat
