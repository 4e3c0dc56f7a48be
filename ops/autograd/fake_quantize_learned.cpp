#include "qat/ops/fake_quantize_learned.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/autograd/no_double_backward.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Gradients (4), (5) and (6), found in one pass over x. Keeps only its inputs.
class FakeQuantizeLearned : public torch::autograd::Function<FakeQuantizeLearned> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& scale,
                            const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                            int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype,
                            double gradient_scale, std::optional<at::ScalarType> dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({x, scale, zero_point.value_or(at::Tensor())});
    ctx->saved_data["block"] = block.vec();
    ctx->saved_data["quant_min"] = quant_min;
    ctx->saved_data["quant_max"] = quant_max;
    ctx->saved_data["scale_dtype"] = scale_dtype;
    ctx->saved_data["gradient_scale"] = gradient_scale;
    return fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                                 gradient_scale, dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto zero_point = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const auto [grad_x, grad_scale, grad_zero_point] = fake_quantize_learned_backward(
        grads[0].to(saved[0].scalar_type()), saved[0], saved[1], zero_point,
        ctx->saved_data["block"].toIntVector(), ctx->saved_data["quant_min"].toInt(),
        ctx->saved_data["quant_max"].toInt(), ctx->saved_data["scale_dtype"].toScalarType(),
        ctx->saved_data["gradient_scale"].toDouble());
    return {grad_x, grad_scale, zero_point ? grad_zero_point : at::Tensor(), {}, {}, {}, {},
            {},     {}};
  }
};

at::Tensor fake_quantize_learned_autograd(const at::Tensor& x, const at::Tensor& scale,
                                          const std::optional<at::Tensor>& zero_point,
                                          at::IntArrayRef block, int64_t quant_min,
                                          int64_t quant_max, at::ScalarType scale_dtype,
                                          double gradient_scale,
                                          std::optional<at::ScalarType> dtype) {
  return FakeQuantizeLearned::apply(x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                                    gradient_scale, dtype);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_autograd(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  refuse_double_backward("fake_quantize_learned", grad, x, scale);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return fake_quantize_learned_backward(grad, x, scale, zero_point, block, quant_min, quant_max,
                                        scale_dtype, gradient_scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_autograd);
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_autograd);
}

}  // namespace qat
