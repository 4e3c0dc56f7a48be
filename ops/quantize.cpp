#include "qat/ops/quantize.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

void check_quantize(const at::Tensor& x, const at::Tensor& scale,
                    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                    int64_t quant_min, int64_t quant_max) {
  check_input("quantize", x);
  check_block("quantize", block);
  check_range("quantize", quant_min, quant_max);
  check_qparams("quantize", x, scale, zero_point, at::kChar, block);
}

void check_dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar, "[dequantize] codes must be int8, but is ",
                   codes.scalar_type(), ".");
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
                   "[dequantize] dtype must be float32, float16 or bfloat16, but is ", dtype, ".");
  check_block("dequantize", block);
  check_qparams("dequantize", codes, scale, zero_point, at::kChar, block);
}

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale,
                    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                    int64_t quant_min, int64_t quant_max) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::quantize", "")
                             .typed<decltype(quantize)>();
  return op.call(x, scale, zero_point, block, quant_min, quant_max);
}

at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::dequantize", "")
                             .typed<decltype(dequantize)>();
  return op.call(codes, scale, zero_point, block, dtype);
}

at::Tensor dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                               const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                               at::IntArrayRef block) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_dequantize_backward", "")
                             .typed<decltype(dequantize_backward)>();
  return op.call(grad, codes, scale, zero_point, block);
}

namespace {

// Made of other operators, so one kernel serves every backend.
at::Tensor dequantize_backward_kernel(const at::Tensor& grad, const at::Tensor& codes,
                                      const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block) {
  const BlockLayout layout = layout_of(codes, block);
  const at::Tensor levels = dequantize(codes, at::ones_like(scale), zero_point, block, at::kFloat);
  const at::Tensor products = at::mul(grad.to(at::kFloat), levels).view({layout.rows, layout.cols});
  const int64_t rows = layout.grid_rows * layout.block_rows,
                cols = layout.grid_cols * layout.block_cols;
  return at::constant_pad_nd(products, {0, cols - layout.cols, 0, rows - layout.rows})
      .view({layout.grid_rows, layout.block_rows, layout.grid_cols, layout.block_cols})
      .sum({1, 3});
}

at::Tensor dequantize_backward_meta(const at::Tensor&, const at::Tensor&, const at::Tensor& scale,
                                    const std::optional<at::Tensor>&, at::IntArrayRef) {
  return at::empty_like(scale);
}

at::Tensor quantize_meta(const at::Tensor& x, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                         int64_t quant_min, int64_t quant_max) {
  check_quantize(x, scale, zero_point, block, quant_min, quant_max);
  return at::empty_like(x, x.options().dtype(at::kChar), at::MemoryFormat::Contiguous);
}

at::Tensor dequantize_meta(const at::Tensor& codes, const at::Tensor& scale,
                           const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                           at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  return at::empty_like(codes, codes.options().dtype(dtype), at::MemoryFormat::Contiguous);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "quantize(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, int quant_min, "
      "int quant_max) -> Tensor");
  m.def(
      "dequantize(Tensor codes, Tensor scale, Tensor? zero_point, int[2] block, ScalarType dtype) "
      "-> Tensor");
  m.def(
      "_dequantize_backward(Tensor grad, Tensor codes, Tensor scale, Tensor? zero_point, "
      "int[2] block) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("_dequantize_backward", &dequantize_backward_kernel);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("_dequantize_backward", &dequantize_backward_meta);
  m.impl("quantize", &quantize_meta);
  m.impl("dequantize", &dequantize_meta);
}

}  // namespace qat
