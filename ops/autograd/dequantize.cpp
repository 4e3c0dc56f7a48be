#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/no_double_backward.h"
#include "ops/checks.h"
#include "ops/quantize.h"

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One sum a block of a matrix.
at::Tensor block_sums(const at::Tensor& matrix, const BlockLayout& layout) {
  const int64_t rows = layout.grid_rows * layout.block_rows,
                cols = layout.grid_cols * layout.block_cols;
  return at::constant_pad_nd(matrix, {0, cols - layout.cols, 0, rows - layout.rows})
      .view({layout.grid_rows, layout.block_rows, layout.grid_cols, layout.block_cols})
      .sum({1, 3});
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
    const at::Tensor &codes = saved[0], &scale = saved[1];
    refuse_double_backward("dequantize", grads[0], codes, scale);
    const auto block = ctx->saved_data["block"].toIntVector();
    const BlockLayout layout = layout_of(codes, block);
    const auto zero_point = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const at::Tensor levels =
        dequantize(codes, at::ones_like(scale), zero_point, block, at::kFloat);
    const at::Tensor products = (grads[0].to(at::kFloat) * levels).view({layout.rows, layout.cols});
    return {at::Tensor(), block_sums(products, layout), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor dequantize_autograd(const at::Tensor& codes, const at::Tensor& scale,
                               const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                               at::ScalarType dtype) {
  return Dequantize::apply(codes, scale, zero_point, block, dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) { m.impl("dequantize", &dequantize_autograd); }

}  // namespace qat
