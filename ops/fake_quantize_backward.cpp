#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "qat/ops/call.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/kept_memory.h"
#include "qat/ops/kernels.h"

namespace qat {

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using TwoTensors = std::tuple<at::Tensor, at::Tensor>;

ThreeTensors fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                    std::string_view quantizer, const OptionalTensor& scale,
                                    const OptionalTensor& zero_point,
                                    const OptionalTensor& outer_scale) {
  return call<"qat::_fake_quantize_backward", decltype(fake_quantize_backward)>(
      grad, x, quantizer, scale, zero_point, outer_scale);
}

TwoTensors fake_quantize_backward_inplace(at::Tensor& grad, const at::Tensor& x,
                                          std::string_view quantizer, const OptionalTensor& scale,
                                          const OptionalTensor& zero_point,
                                          const OptionalTensor& outer_scale) {
  return call<"qat::_fake_quantize_backward_", decltype(fake_quantize_backward_inplace)>(
      grad, x, quantizer, scale, zero_point, outer_scale);
}

namespace {

using Mode = Quantizer::Mode;

Quantizer checked(const at::Tensor& grad, const at::Tensor& x, std::string_view text,
                  const Quantizer::Parameters& given, bool inplace) {
  check_input("fake_quantize", x);
  const Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[fake_quantize] quantizer must not be empty.");
  check_parameters("fake_quantize", quantizer, x, given);
  check_gradient("fake_quantize", grad, x, inplace);
  return quantizer;
}

// Writes the gradient of x to `out`, which may be `grad` itself, and returns those of scale and
// zero point.
TwoTensors backward(const BackwardKernels& kernels, const at::Tensor& grad, const Blocks& blocks,
                    const Quantizer::Parameters& given, const at::Tensor& out) {
  const auto& [x, quantizer, layout] = blocks;
  const bool learned = quantizer.mode == Mode::learned;
  const bool shifts = given.zero_point && !is_named(quantizer.grid);
  const auto float32 = x.options().dtype(at::kFloat);
  const auto sums = [&](bool wanted, const c10::SymInt& rows, const c10::SymInt& cols) {
    return learned && wanted ? at::empty_symint({rows, cols}, float32) : at::empty({0}, float32);
  };
  if (x.is_meta()) {
    const auto [rows, cols] = grid_sizes(x, quantizer.block);
    return {sums(true, rows, cols), sums(shifts, rows, cols)};
  }
  if (quantizer.never_clips()) {
    if (!out.is_same(grad)) out.copy_(grad);
    return {sums(false, 0, 0), sums(false, 0, 0)};
  }
  const auto factor = static_cast<float>(quantizer.gradient_scale);
  const bool one_row = layout.block_rows == 1;  // a segment is a block
  // The sums of each segment, so that the order of addition does not depend on the threads.
  const GradientTensors gradients{grad, out, sums(true, layout.rows, layout.grid_cols),
                                  sums(shifts, layout.rows, layout.grid_cols),
                                  one_row ? factor : 1.0f};
  kernels.backward(blocks, stored_parameters(x, quantizer, given, kernels.learned), gradients);
  if (!learned || one_row) return {gradients.scale, gradients.zero_point};
  return {kernels.sum_rows(gradients.scale, layout, factor),
          shifts ? kernels.sum_rows(gradients.zero_point, layout, factor) : gradients.zero_point};
}

}  // namespace

void implement_fake_quantize_backward(torch::Library& m, const BackwardKernels& kernels) {
  m.impl("_fake_quantize_backward",
         [kernels](const at::Tensor& grad, const at::Tensor& x, std::string_view text,
                   const OptionalTensor& scale, const OptionalTensor& zero_point,
                   const OptionalTensor& outer_scale) -> ThreeTensors {
           const Quantizer::Parameters given{scale, zero_point, outer_scale};
           const Blocks blocks(x, checked(grad, x, text, given, false));
           const c10::DeviceGuard on_device(x.device());
           const at::Tensor grad_x = kept_empty_like(x);
           const auto [grad_scale, grad_zero] =
               backward(kernels, grad.contiguous(), blocks, given, grad_x);
           return {grad_x, grad_scale, grad_zero};
         });
  m.impl("_fake_quantize_backward_",
         [kernels](at::Tensor& grad, const at::Tensor& x, std::string_view text,
                   const OptionalTensor& scale, const OptionalTensor& zero_point,
                   const OptionalTensor& outer_scale) -> TwoTensors {
           const Quantizer::Parameters given{scale, zero_point, outer_scale};
           const Blocks blocks(x, checked(grad, x, text, given, true));
           const c10::DeviceGuard on_device(x.device());
           return backward(kernels, grad, blocks, given, grad);
         });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "_fake_quantize_backward(Tensor grad, Tensor x, str quantizer, Tensor? scale, "
      "Tensor? zero_point, Tensor? outer_scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_fake_quantize_backward_(Tensor(a!) grad, Tensor x, str quantizer, Tensor? scale, "
      "Tensor? zero_point, Tensor? outer_scale) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { implement_fake_quantize_backward(m, {}); }

}  // namespace qat
