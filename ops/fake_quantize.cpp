#include "qat/ops/fake_quantize.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/parameters.h"

namespace qat {

Quantizer check_fake_quantize(const at::Tensor& x, std::string_view text,
                              const OptionalTensor& scale, const OptionalTensor& zero_point,
                              const OptionalTensor& outer_scale,
                              std::optional<at::ScalarType> dtype) {
  check_input("fake_quantize", x);
  check_result_dtype("fake_quantize", x, dtype);
  const Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[fake_quantize] quantizer must not be empty.");
  check_parameters("fake_quantize", quantizer, x, scale, zero_point, outer_scale);
  return quantizer;
}

FakeQuantized fake_quantize(const at::Tensor& x, std::string_view quantizer,
                            const OptionalTensor& scale, const OptionalTensor& zero_point,
                            const OptionalTensor& outer_scale,
                            std::optional<at::ScalarType> dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::fake_quantize", "")
                             .typed<decltype(fake_quantize)>();
  return op.call(x, quantizer, scale, zero_point, outer_scale, dtype);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, std::string_view quantizer,
    const OptionalTensor& scale, const OptionalTensor& zero_point,
    const OptionalTensor& outer_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_backward", "")
                             .typed<decltype(fake_quantize_backward)>();
  return op.call(grad, x, quantizer, scale, zero_point, outer_scale);
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_backward_inplace(
    at::Tensor& grad, const at::Tensor& x, std::string_view quantizer, const OptionalTensor& scale,
    const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_backward_", "")
                             .typed<decltype(fake_quantize_backward_inplace)>();
  return op.call(grad, x, quantizer, scale, zero_point, outer_scale);
}

namespace {

at::Tensor like(const at::Tensor& x, at::ScalarType dtype) {
  return at::empty_like(x, x.options().dtype(dtype), at::MemoryFormat::Contiguous);
}

FakeQuantized fake_quantize_meta(const at::Tensor& x, std::string_view text,
                                 const OptionalTensor& scale, const OptionalTensor& zero_point,
                                 const OptionalTensor& outer_scale,
                                 std::optional<at::ScalarType> dtype) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale, dtype);
  const auto [scale_found, zero_found] = quantizer.mode == Quantizer::Mode::minmax
                                             ? empty_parameters(x, quantizer)
                                             : no_parameters(x, quantizer);
  return {like(x, dtype.value_or(x.scalar_type())), scale_found, zero_found};
}

// Gradients of scale and zero point, shaped like them.
std::tuple<at::Tensor, at::Tensor> parameter_gradients(const at::Tensor& x,
                                                       const Quantizer& quantizer,
                                                       const OptionalTensor& scale,
                                                       const OptionalTensor& zero_point) {
  const auto none = [&] { return at::empty({0}, x.options().dtype(at::kFloat)); };
  if (quantizer.mode != Quantizer::Mode::learned) return {none(), none()};
  const bool shifts = zero_point && !is_float(quantizer.grid);
  return {like(*scale, at::kFloat), shifts ? like(*zero_point, at::kFloat) : none()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_backward_meta(
    const at::Tensor& grad, const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
    const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale);
  check_gradient("fake_quantize", grad, x);
  const auto [grad_scale, grad_zero] = parameter_gradients(x, quantizer, scale, zero_point);
  return {like(x, x.scalar_type()), grad_scale, grad_zero};
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_backward_inplace_meta(
    at::Tensor& grad, const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
    const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale);
  check_gradient_inplace("fake_quantize", grad, x);
  return parameter_gradients(x, quantizer, scale, zero_point);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize(Tensor x, str quantizer, Tensor? scale=None, Tensor? zero_point=None, "
      "Tensor? outer_scale=None, *, ScalarType? dtype=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_fake_quantize_backward(Tensor grad, Tensor x, str quantizer, Tensor? scale, "
      "Tensor? zero_point, Tensor? outer_scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_fake_quantize_backward_(Tensor(a!) grad, Tensor x, str quantizer, Tensor? scale, "
      "Tensor? zero_point, Tensor? outer_scale) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("fake_quantize", &fake_quantize_meta);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_meta);
  m.impl("_fake_quantize_backward_", &fake_quantize_backward_inplace_meta);
}

}  // namespace qat
