#include "qat/ops/quantize_with_feedback.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

void check_quantize_with_feedback(const at::Tensor& weight, const at::Tensor& offset,
                                  const at::Tensor& transfer, const at::Tensor& scale,
                                  const at::Tensor& zero_point, int64_t quant_min,
                                  int64_t quant_max) {
  check_range("quantize_with_feedback", quant_min, quant_max);
  TORCH_CHECK_TYPE(
      weight.scalar_type() == at::kFloat && offset.scalar_type() == at::kFloat &&
          transfer.scalar_type() == at::kFloat && scale.scalar_type() == at::kFloat &&
          zero_point.scalar_type() == at::kChar,
      "[quantize_with_feedback] weight, offset, transfer and scale must be float32 and "
      "zero_point int8, but they are ",
      weight.scalar_type(), ", ", offset.scalar_type(), ", ", transfer.scalar_type(), ", ",
      scale.scalar_type(), " and ", zero_point.scalar_type(), ".");
  TORCH_CHECK_VALUE(weight.dim() == 2 && offset.sym_sizes() == weight.sym_sizes(),
                    "[quantize_with_feedback] weight and offset must be matrices of one shape, but "
                    "they are ",
                    weight.sym_sizes(), " and ", offset.sym_sizes(), ".");
  const c10::SymInt rows = weight.sym_size(0), cols = weight.sym_size(1);
  TORCH_CHECK_VALUE(cols <= kMostFeedbackColumns,
                    "[quantize_with_feedback] weight must have at most ", kMostFeedbackColumns,
                    " columns, but has ", cols, ".");
  TORCH_CHECK_VALUE(
      transfer.dim() == 2 && transfer.sym_size(0) == cols && transfer.sym_size(1) == cols,
      "[quantize_with_feedback] transfer must be [", cols, ", ", cols, "], but is ",
      transfer.sym_sizes(), ".");
  TORCH_CHECK_VALUE(scale.dim() == 2 && scale.sym_size(0) == rows &&
                        (scale.sym_size(1) == 1 || scale.sym_size(1) == cols) &&
                        zero_point.sym_sizes() == scale.sym_sizes(),
                    "[quantize_with_feedback] scale and zero_point must be [", rows, ", 1] or [",
                    rows, ", ", cols, "], but they are ", scale.sym_sizes(), " and ",
                    zero_point.sym_sizes(), ".");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback(
    const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& transfer,
    const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::quantize_with_feedback", "")
                             .typed<decltype(quantize_with_feedback)>();
  return op.call(weight, offset, transfer, scale, zero_point, quant_min, quant_max);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback_meta(
    const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& transfer,
    const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  check_quantize_with_feedback(weight, offset, transfer, scale, zero_point, quant_min, quant_max);
  const at::Tensor like = weight.contiguous();
  return {at::empty_like(like, like.options().dtype(at::kChar)), at::empty_like(like),
          at::empty_like(like)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "quantize_with_feedback(Tensor weight, Tensor offset, Tensor transfer, Tensor scale, "
      "Tensor zero_point, int quant_min, int quant_max) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { m.impl("quantize_with_feedback", &quantize_with_feedback_meta); }

}  // namespace qat
