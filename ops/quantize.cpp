#include "qat/ops/quantize.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones_like.h>
#include <c10/core/DeviceGuard.h>

#include "qat/ops/arguments.h"
#include "qat/ops/call.h"
#include "qat/ops/kept_memory.h"
#include "qat/ops/kernels.h"

namespace qat {

at::ScalarType code_dtype(Grid grid) {
  return !is_float(grid) ? at::kChar : grid == Grid::e5m2 ? at::kFloat8_e5m2 : at::kFloat8_e4m3fn;
}

namespace {

Quantizer check_quantize(const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                         const OptionalTensor& zero_point) {
  check_input("quantize", x);
  Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[quantize] quantizer must not be empty.");
  quantizer.mode = Quantizer::Mode::fixed;
  check_parameters("quantize", quantizer, x, {scale, zero_point, {}});
  return quantizer;
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
  if (is_offset(zero_point)) given.grid = Grid::offset;
  check_parameters("dequantize", given, codes, {scale, zero_point, {}});
}

}  // namespace

void check_dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                               const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                               at::IntArrayRef block) {
  check_dequantize(codes, scale, zero_point, block, grad.scalar_type());
  check_device("dequantize", "grad", grad, codes);
  TORCH_CHECK_VALUE(grad.sym_sizes() == codes.sym_sizes(),
                    "[dequantize] grad must have the shape of codes, ", codes.sym_sizes(),
                    ", but has ", grad.sym_sizes(), ".");
}

at::Tensor quantize(const at::Tensor& x, std::string_view quantizer, const at::Tensor& scale,
                    const OptionalTensor& zero_point) {
  return call<"qat::quantize", decltype(quantize)>(x, quantizer, scale, zero_point);
}

at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale,
                      const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                      at::ScalarType dtype) {
  return call<"qat::dequantize", decltype(dequantize)>(codes, scale, zero_point, block, dtype);
}

at::Tensor dequantize_backward(const at::Tensor& grad, const at::Tensor& codes,
                               const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                               at::IntArrayRef block) {
  return call<"qat::_dequantize_backward", decltype(dequantize_backward)>(grad, codes, scale,
                                                                          zero_point, block);
}

namespace {

// Made of other operators, for devices that have no kernel of their own as the CPU has.
at::Tensor dequantize_backward_kernel(const at::Tensor& grad, const at::Tensor& codes,
                                      const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block) {
  check_dequantize_backward(grad, codes, scale, zero_point, block);
  const BlockLayout layout = layout_of(codes, block);
  const at::Tensor levels =
      dequantize(codes, at::ones_like(scale), is_offset(zero_point) ? std::nullopt : zero_point,
                 block, at::kFloat);
  const at::Tensor products =
      at::mul(grad.to(at::kFloat), levels).reshape({layout.rows, layout.cols});
  const int64_t rows = layout.grid_rows * layout.block_rows,
                cols = layout.grid_cols * layout.block_cols;
  return at::constant_pad_nd(products, {0, cols - layout.cols, 0, rows - layout.rows})
      .view({layout.grid_rows, layout.block_rows, layout.grid_cols, layout.block_cols})
      .sum({1, 3});
}

at::Tensor dequantize_backward_meta(const at::Tensor& grad, const at::Tensor& codes,
                                    const at::Tensor& scale,
                                    const std::optional<at::Tensor>& zero_point,
                                    at::IntArrayRef block) {
  check_dequantize_backward(grad, codes, scale, zero_point, block);
  return at::empty_like(scale);
}

}  // namespace

void implement_quantize(torch::Library& m, const QuantizeKernels& kernels) {
  m.impl("quantize", [kernels](const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                               const OptionalTensor& zero_point) {
    const Blocks blocks(x, check_quantize(x, text, scale, zero_point));
    const c10::DeviceGuard on_device(x.device());
    const at::Tensor codes =
        at::empty_like(blocks.x, x.options().dtype(code_dtype(blocks.quantizer.grid)));
    if (x.is_meta()) return codes;
    const StoredTensors stored = stored_parameters(x, blocks.quantizer, {scale, zero_point, {}});
    kernels.quantize(blocks, stored, codes);
    return codes;
  });
  m.impl("dequantize",
         [kernels](const at::Tensor& codes, const at::Tensor& scale,
                   const OptionalTensor& zero_point, at::IntArrayRef block, at::ScalarType dtype) {
           check_dequantize(codes, scale, zero_point, block, dtype);
           const c10::DeviceGuard on_device(codes.device());
           const at::Tensor input = codes.contiguous();
           const at::Tensor y = kept_empty_like(input, dtype);
           if (codes.is_meta()) return y;
           kernels.dequantize(input, layout_of(codes, block), scale.contiguous(),
                              contiguous(zero_point), y);
           return y;
         });
}

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
  implement_quantize(m, {});
}

}  // namespace qat
