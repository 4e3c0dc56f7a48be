#include "qat/ops/fake_quantize_learned.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"

namespace qat {

void check_fake_quantize_learned(const at::Tensor& x, const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                                 int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype,
                                 std::optional<at::ScalarType> dtype) {
  check_input("fake_quantize_learned", x);
  check_result_dtype("fake_quantize_learned", x, dtype);
  check_block("fake_quantize_learned", block);
  check_range("fake_quantize_learned", quant_min, quant_max);
  check_scale_dtype("fake_quantize_learned", scale_dtype);
  check_qparams("fake_quantize_learned", x, scale, zero_point, at::kFloat, block);
}

at::Tensor fake_quantize_learned(const at::Tensor& x, const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                                 int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype,
                                 double gradient_scale, std::optional<at::ScalarType> dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::fake_quantize_learned", "")
                             .typed<decltype(fake_quantize_learned)>();
  return op.call(x, scale, zero_point, block, quant_min, quant_max, scale_dtype, gradient_scale,
                 dtype);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_learned_backward", "")
                             .typed<decltype(fake_quantize_learned_backward)>();
  return op.call(grad, x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                 gradient_scale);
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_learned_backward_inplace(
    at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_learned_backward_", "")
                             .typed<decltype(fake_quantize_learned_backward_inplace)>();
  return op.call(grad, x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                 gradient_scale);
}

namespace {

at::Tensor fake_quantize_learned_meta(const at::Tensor& x, const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block, int64_t quant_min, int64_t quant_max,
                                      at::ScalarType scale_dtype, double /*gradient_scale*/,
                                      std::optional<at::ScalarType> dtype) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                              dtype);
  return at::empty_like(x, x.options().dtype(dtype.value_or(x.scalar_type())),
                        at::MemoryFormat::Contiguous);
}

// Gradients of scale and zero point, shaped like them.
std::tuple<at::Tensor, at::Tensor> parameter_gradients_meta(
    const at::Tensor& scale, const std::optional<at::Tensor>& zero_point) {
  return {at::empty_like(scale, at::MemoryFormat::Contiguous),
          zero_point ? at::empty_like(*zero_point, at::MemoryFormat::Contiguous)
                     : at::empty({0}, scale.options())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_meta(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double /*gradient_scale*/) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient("fake_quantize_learned", grad, x);
  const auto [grad_scale, grad_zero_point] = parameter_gradients_meta(scale, zero_point);
  return {at::empty_like(x, at::MemoryFormat::Contiguous), grad_scale, grad_zero_point};
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_learned_backward_inplace_meta(
    at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double /*gradient_scale*/) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient_inplace("fake_quantize_learned", grad, x);
  return parameter_gradients_meta(scale, zero_point);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize_learned(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, "
      "int quant_min, int quant_max, ScalarType scale_dtype, float gradient_scale, *, "
      "ScalarType? dtype=None) -> Tensor");
  m.def(
      "_fake_quantize_learned_backward(Tensor grad, Tensor x, Tensor scale, Tensor? zero_point, "
      "int[2] block, int quant_min, int quant_max, ScalarType scale_dtype, float gradient_scale) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_fake_quantize_learned_backward_(Tensor(a!) grad, Tensor x, Tensor scale, "
      "Tensor? zero_point, int[2] block, int quant_min, int quant_max, ScalarType scale_dtype, "
      "float gradient_scale) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_meta);
  m.impl("_fake_quantize_learned_backward_", &fake_quantize_learned_backward_inplace_meta);
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_meta);
}

}  // namespace qat
