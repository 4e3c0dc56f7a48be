#include "qat/ops/fake_quantize.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

void check_fake_quantize(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max,
                         std::optional<at::ScalarType> dtype) {
  check_input("fake_quantize", x);
  check_result_dtype("fake_quantize", x, dtype);
  check_block("fake_quantize", block);
  check_range_or_float8("fake_quantize", quant_min, quant_max);
  check_qparams("fake_quantize", x, scale, zero_point, at::kChar, block);
}

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max,
                         std::optional<at::ScalarType> dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::fake_quantize", "")
                             .typed<decltype(fake_quantize)>();
  return op.call(x, scale, zero_point, block, quant_min, quant_max, dtype);
}

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& scale,
                                  const std::optional<at::Tensor>& zero_point,
                                  at::IntArrayRef block, int64_t quant_min, int64_t quant_max) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_backward", "")
                             .typed<decltype(fake_quantize_backward)>();
  return op.call(grad, x, scale, zero_point, block, quant_min, quant_max);
}

void fake_quantize_backward_inplace(at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                    const std::optional<at::Tensor>& zero_point,
                                    at::IntArrayRef block, int64_t quant_min, int64_t quant_max) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_fake_quantize_backward_", "")
                             .typed<decltype(fake_quantize_backward_inplace)>();
  op.call(grad, x, scale, zero_point, block, quant_min, quant_max);
}

namespace {

at::Tensor fake_quantize_meta(const at::Tensor& x, const at::Tensor& scale,
                              const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                              int64_t quant_min, int64_t quant_max,
                              std::optional<at::ScalarType> dtype) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max, dtype);
  return at::empty_like(x, x.options().dtype(dtype.value_or(x.scalar_type())),
                        at::MemoryFormat::Contiguous);
}

void fake_quantize_backward_inplace_meta(at::Tensor& grad, const at::Tensor& x,
                                         const at::Tensor& scale,
                                         const std::optional<at::Tensor>& zero_point,
                                         at::IntArrayRef block, int64_t quant_min,
                                         int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient_inplace("fake_quantize", grad, x);
}

at::Tensor fake_quantize_backward_meta(const at::Tensor& grad, const at::Tensor& x,
                                       const at::Tensor& scale,
                                       const std::optional<at::Tensor>& zero_point,
                                       at::IntArrayRef block, int64_t quant_min,
                                       int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient("fake_quantize", grad, x);
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, int quant_min, "
      "int quant_max, *, ScalarType? dtype=None) -> Tensor");
  m.def(
      "_fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor? zero_point, "
      "int[2] block, int quant_min, int quant_max) -> Tensor");
  m.def(
      "_fake_quantize_backward_(Tensor(a!) grad, Tensor x, Tensor scale, Tensor? zero_point, "
      "int[2] block, int quant_min, int quant_max) -> ()");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("fake_quantize", &fake_quantize_meta);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_meta);
  m.impl("_fake_quantize_backward_", &fake_quantize_backward_inplace_meta);
}

}  // namespace qat
