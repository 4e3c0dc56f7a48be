#include "qat/ops/quantize.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

Quantizer check_quantize(const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                         const OptionalTensor& zero_point) {
  check_input("quantize", x);
  Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[quantize] quantizer must not be empty.");
  quantizer.mode = Quantizer::Mode::fixed;
  check_parameters("quantize", quantizer, x, scale, zero_point);
  return quantizer;
}

at::ScalarType code_dtype(Grid grid) {
  return !is_float(grid) ? at::kChar : grid == Grid::e5m2 ? at::kFloat8_e5m2 : at::kFloat8_e4m3fn;
}

void check_dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype) {
  const auto kind = codes.scalar_type();
  TORCH_CHECK_TYPE(kind == at::kChar || kind == at::kFloat8_e4m3fn || kind == at::kFloat8_e5m2,
                   "[dequantize] codes must be int8, float8_e4m3fn or float8_e5m2, but is ", kind,
                   ".");
  check_float("dequantize", "dtype", dtype);
  check_block("dequantize", block);
  Quantizer given;
  given.mode = Quantizer::Mode::fixed;
  std::copy(block.begin(), block.end(), given.block.begin());
  if (zero_point && zero_point->scalar_type() == at::kFloat) given.grid = Grid::offset;
  check_parameters("dequantize", given, codes, scale, zero_point);
}

at::Tensor quantize(const at::Tensor& x, std::string_view quantizer, const at::Tensor& scale,
                    const OptionalTensor& zero_point) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::quantize", "")
                             .typed<decltype(quantize)>();
  return op.call(x, quantizer, scale, zero_point);
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
  const bool offset = zero_point && zero_point->scalar_type() == at::kFloat;
  const at::Tensor levels = dequantize(codes, at::ones_like(scale),
                                       offset ? std::nullopt : zero_point, block, at::kFloat);
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

at::Tensor quantize_meta(const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                         const OptionalTensor& zero_point) {
  const Quantizer quantizer = check_quantize(x, text, scale, zero_point);
  return at::empty_like(x, x.options().dtype(code_dtype(quantizer.grid)),
                        at::MemoryFormat::Contiguous);
}

at::Tensor dequantize_meta(const at::Tensor& codes, const at::Tensor& scale,
                           const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                           at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  return at::empty_like(codes, codes.options().dtype(dtype), at::MemoryFormat::Contiguous);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def("quantize(Tensor x, str quantizer, Tensor scale, Tensor? zero_point=None) -> Tensor");
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
