#include "qat/ops/quantize_with_feedback.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "qat/ops/arguments.h"
#include "qat/ops/call.h"
#include "qat/ops/kernels.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

Quantizer check_quantize_with_feedback(const at::Tensor& weight, std::string_view text,
                                       const at::Tensor& offset, const at::Tensor& transfer,
                                       const at::Tensor& scale, const OptionalTensor& zero_point) {
  const char* op = "quantize_with_feedback";
  const Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[quantize_with_feedback] quantizer must not be empty.");
  TORCH_CHECK_TYPE(
      weight.scalar_type() == at::kFloat && offset.scalar_type() == at::kFloat &&
          transfer.scalar_type() == at::kFloat && scale.scalar_type() == at::kFloat &&
          (!zero_point || zero_point->scalar_type() == quantizer.zero_dtype()),
      "[quantize_with_feedback] weight, offset, transfer and scale must be float32 and "
      "zero_point ",
      quantizer.zero_dtype(), ", but they are ", weight.scalar_type(), ", ", offset.scalar_type(),
      ", ", transfer.scalar_type(), ", ", scale.scalar_type(), " and ",
      zero_point ? zero_point->scalar_type() : quantizer.zero_dtype(), ".");
  check_device(op, "offset", offset, weight);
  check_device(op, "transfer", transfer, weight);
  check_device(op, "scale", scale, weight);
  if (zero_point) check_device(op, "zero_point", *zero_point, weight);
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
                        (!zero_point || zero_point->sym_sizes() == scale.sym_sizes()),
                    "[quantize_with_feedback] scale and zero_point must be [", rows, ", 1] or [",
                    rows, ", ", cols, "], but they are ", scale.sym_sizes(), " and ",
                    zero_point.value_or(scale).sym_sizes(), ".");
  return quantizer;
}

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Room for codes, error and residual.
ThreeTensors room_for(const at::Tensor& weight, const Quantizer& quantizer) {
  const at::Tensor like = weight.contiguous();
  return {at::empty_like(like, like.options().dtype(code_dtype(quantizer.grid))),
          at::empty_like(like), at::empty_like(like)};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback(
    const at::Tensor& weight, std::string_view quantizer, const at::Tensor& offset,
    const at::Tensor& transfer, const at::Tensor& scale, const OptionalTensor& zero_point) {
  return call<"qat::quantize_with_feedback", decltype(quantize_with_feedback)>(
      weight, quantizer, offset, transfer, scale, zero_point);
}

void implement_quantize_with_feedback(torch::Library& m, void (*solve)(const Feedback&)) {
  m.impl("quantize_with_feedback",
         [solve](const at::Tensor& weight, std::string_view text, const at::Tensor& offset,
                 const at::Tensor& transfer, const at::Tensor& scale,
                 const OptionalTensor& zero_point) {
           const Quantizer quantizer =
               check_quantize_with_feedback(weight, text, offset, transfer, scale, zero_point);
           const c10::DeviceGuard on_device(weight.device());
           auto result = room_for(weight, quantizer);
           const auto& [codes, error, residual] = result;
           // A float's levels have no zero point, whatever is given.
           OptionalTensor zeros;
           if (zero_point && !is_named(quantizer.grid))
             zeros = zero_point->to(at::kFloat).contiguous();
           if (!weight.is_meta() && weight.numel() != 0)
             solve({quantizer, weight.contiguous(), offset.contiguous(), transfer.contiguous(),
                    scale.contiguous(), zeros, codes, error, residual});
           return result;
         });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "quantize_with_feedback(Tensor weight, str quantizer, Tensor offset, Tensor transfer, "
      "Tensor scale, Tensor? zero_point=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { implement_quantize_with_feedback(m, nullptr); }

}  // namespace qat
