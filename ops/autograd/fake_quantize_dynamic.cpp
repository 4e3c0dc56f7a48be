#include "qat/ops/fake_quantize_dynamic.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/fake_quantize.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The scale counts as a constant, so the gradient is (4) with the scale that the forward found. On
// the narrow grid no element is clipped: the gradient is returned as it came and nothing is kept.
class FakeQuantizeDynamic : public torch::autograd::Function<FakeQuantizeDynamic> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, at::IntArrayRef block,
                               int64_t bits, const std::string& grid, at::ScalarType scale_dtype,
                               std::optional<at::ScalarType> dtype) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [y, scale, zero_point] = fake_quantize_dynamic(x, block, bits, grid, scale_dtype, dtype);
    ctx->mark_non_differentiable({scale, zero_point});
    const Grid parsed = parse_grid("fake_quantize_dynamic", grid);
    ctx->saved_data["dtype"] = x.scalar_type();
    if (!never_clips(parsed, scale_dtype)) {
      const QuantRange range = range_of(parsed, static_cast<int>(bits));
      ctx->save_for_backward({x, scale, zero_point});
      ctx->saved_data["block"] = block.vec();
      ctx->saved_data["quant_min"] = static_cast<int64_t>(range.min);
      ctx->saved_data["quant_max"] = static_cast<int64_t>(range.max);
    }
    return {y, scale, zero_point};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor grad = grads[0].to(ctx->saved_data["dtype"].toScalarType());
    if (!ctx->saved_data.count("block")) return {grad, {}, {}, {}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor grad_x = fake_quantize_backward(
        grad, saved[0], saved[1], saved[2], ctx->saved_data["block"].toIntVector(),
        ctx->saved_data["quant_min"].toInt(), ctx->saved_data["quant_max"].toInt());
    return {grad_x, {}, {}, {}, {}, {}};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_autograd(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  const auto outputs =
      FakeQuantizeDynamic::apply(x, block, bits, std::string(grid), scale_dtype, dtype);
  return {outputs[0], outputs[1], outputs[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_autograd);
}

}  // namespace qat
