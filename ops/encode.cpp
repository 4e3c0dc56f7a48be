#include "qat/ops/encode.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <utility>

#include "qat/ops/checks.h"

namespace qat {

namespace {

Quantizer checked(const char* op, std::string_view text) {
  const Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active() && quantizer.has_codes(), "[", op,
                    "] quantizer must be one of whole levels without an offset, but is \"", text,
                    "\".");
  return quantizer;
}

Quantizer check_codes(const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
                      const at::Tensor& zero_point, at::ScalarType dtype) {
  const Quantizer quantizer = checked("decode", text);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte && codes.dim() == 2,
                   "[decode] codes must be uint8 [rows, bytes], as encode returns them.");
  TORCH_CHECK_TYPE(scale.scalar_type() == at::kFloat && zero_point.scalar_type() == at::kChar,
                   "[decode] scale must be float32 and zero_point int8, as encode returns them.");
  check_device("decode", "scale", scale, codes);
  check_device("decode", "zero_point", zero_point, codes);
  check_float("decode", "dtype", dtype);
  return quantizer;
}

}  // namespace

Quantizer check_encode(const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
                       const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  check_input("encode", x);
  Quantizer quantizer = checked("encode", text);
  if (!scale) quantizer.mode = Quantizer::Mode::minmax;
  check_parameters("encode", quantizer, x, scale, zero_point, outer_scale);
  return quantizer;
}

Quantizer check_decode(const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
                       const at::Tensor& zero_point, int64_t cols, at::ScalarType dtype) {
  const Quantizer quantizer = check_codes(codes, text, scale, zero_point, dtype);
  const auto [height, width] = quantizer.block;
  const BlockLayout layout = make_layout(codes.size(0), cols, height, width);
  const int64_t bytes = code_layout(layout, quantizer.bits).per_row;
  TORCH_CHECK_VALUE(codes.size(1) == bytes, "[decode] codes must have ", bytes, " bytes a row for ",
                    cols, " columns, but have ", codes.size(1), ".");
  const int64_t blocks = layout.grid_rows * layout.grid_cols;
  TORCH_CHECK_VALUE(scale.numel() == blocks && zero_point.numel() == blocks,
                    "[decode] scale and zero_point must have ", blocks, " entries, but have ",
                    scale.numel(), " and ", zero_point.numel(), ".");
  return quantizer;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode(const at::Tensor& x,
                                                      std::string_view quantizer,
                                                      const OptionalTensor& scale,
                                                      const OptionalTensor& zero_point,
                                                      const OptionalTensor& outer_scale) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::encode", "").typed<decltype(encode)>();
  return op.call(x, quantizer, scale, zero_point, outer_scale);
}

at::Tensor decode(const at::Tensor& codes, std::string_view quantizer, const at::Tensor& scale,
                  const at::Tensor& zero_point, c10::SymInt cols, at::ScalarType dtype) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::decode", "").typed<decltype(decode)>();
  return op.call(codes, quantizer, scale, zero_point, std::move(cols), dtype);
}

namespace {

// code_layout with symbolic sizes.
c10::SymInt bytes_per_row(const c10::SymInt& cols, const c10::SymInt& grid_cols, int64_t block_cols,
                          int64_t bits) {
  const auto bytes = [&](const c10::SymInt& length) {
    return bits <= 4 ? (length + 1) / 2 : length;
  };
  const c10::SymInt whole = block_cols == -1 ? cols : c10::SymInt(block_cols);
  return (grid_cols - 1) * bytes(whole) + bytes(cols - (grid_cols - 1) * whole);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_meta(const at::Tensor& x,
                                                           std::string_view text,
                                                           const OptionalTensor& scale,
                                                           const OptionalTensor& zero_point,
                                                           const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_encode(x, text, scale, zero_point, outer_scale);
  const auto [rows, cols] = matrix_sizes(x);
  const auto [grid_rows, grid_cols] = grid_sizes(x, quantizer.block);
  const auto options = x.options();
  return {
      at::empty_symint({rows, bytes_per_row(cols, grid_cols, quantizer.block[1], quantizer.bits)},
                       options.dtype(at::kByte)),
      at::empty_symint({grid_rows, grid_cols}, options.dtype(at::kFloat)),
      at::empty_symint({grid_rows, grid_cols}, options.dtype(at::kChar))};
}

at::Tensor decode_meta(const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
                       const at::Tensor& zero_point, c10::SymInt cols, at::ScalarType dtype) {
  check_codes(codes, text, scale, zero_point, dtype);
  return at::empty_symint({codes.sym_size(0), std::move(cols)}, codes.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "encode(Tensor x, str quantizer, Tensor? scale=None, Tensor? zero_point=None, "
      "Tensor? outer_scale=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode(Tensor codes, str quantizer, Tensor scale, Tensor zero_point, SymInt cols, "
      "ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("encode", &encode_meta);
  m.impl("decode", &decode_meta);
}

}  // namespace qat
