#include "qat/ops/encode.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <utility>

#include "qat/ops/checks.h"

namespace qat {

void check_encode(const at::Tensor& x, const std::optional<at::Tensor>& scale,
                  const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t bits,
                  at::ScalarType scale_dtype) {
  check_input("encode", x);
  check_block("encode", block);
  check_bits("encode", bits);
  check_scale_dtype("encode", scale_dtype);
  TORCH_CHECK_VALUE(scale || !zero_point, "[encode] zero_point must come with a scale.");
  if (scale) check_qparams("encode", x, *scale, zero_point, at::kChar, block);
}

namespace {

void check_codes(const at::Tensor& codes, at::IntArrayRef block, int64_t bits,
                 at::ScalarType dtype) {
  check_block("decode", block);
  check_bits("decode", bits);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte && codes.dim() == 2,
                   "[decode] codes must be uint8 [rows, bytes], as encode returns them.");
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
                   "[decode] dtype must be float32, float16 or bfloat16, but is ", dtype, ".");
}

}  // namespace

BlockLayout check_decode(const at::Tensor& codes, const at::Tensor& scale,
                         const at::Tensor& zero_point, at::IntArrayRef block, int64_t bits,
                         int64_t cols, at::ScalarType dtype) {
  check_codes(codes, block, bits, dtype);
  const BlockLayout layout = make_layout(codes.size(0), cols, block[0], block[1]);
  const int64_t bytes = code_layout(layout, bits).per_row;
  TORCH_CHECK_VALUE(codes.size(1) == bytes, "[decode] codes must have ", bytes, " bytes a row for ",
                    cols, " columns, but have ", codes.size(1), ".");
  const int64_t blocks = layout.grid_rows * layout.grid_cols;
  TORCH_CHECK_VALUE(scale.numel() == blocks && zero_point.numel() == blocks,
                    "[decode] scale and zero_point must have ", blocks, " entries, but have ",
                    scale.numel(), " and ", zero_point.numel(), ".");
  return layout;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode(const at::Tensor& x,
                                                      const std::optional<at::Tensor>& scale,
                                                      const std::optional<at::Tensor>& zero_point,
                                                      at::IntArrayRef block, int64_t bits,
                                                      std::string_view grid,
                                                      at::ScalarType scale_dtype) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::encode", "").typed<decltype(encode)>();
  return op.call(x, scale, zero_point, block, bits, grid, scale_dtype);
}

at::Tensor decode(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point,
                  at::IntArrayRef block, int64_t bits, std::string_view grid, c10::SymInt cols,
                  at::ScalarType dtype) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::decode", "").typed<decltype(decode)>();
  return op.call(codes, scale, zero_point, block, bits, grid, std::move(cols), dtype);
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_meta(
    const at::Tensor& x, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t bits,
    std::string_view grid, at::ScalarType scale_dtype) {
  check_encode(x, scale, zero_point, block, bits, scale_dtype);
  check_integer_grid("encode", grid);
  const auto [rows, cols] = matrix_sizes(x);
  const auto [grid_rows, grid_cols] = grid_sizes(x, block);
  const auto options = x.options();
  return {at::empty_symint({rows, bytes_per_row(cols, grid_cols, block[1], bits)},
                           options.dtype(at::kByte)),
          at::empty_symint({grid_rows, grid_cols}, options.dtype(at::kFloat)),
          at::empty_symint({grid_rows, grid_cols}, options.dtype(at::kChar))};
}

at::Tensor decode_meta(const at::Tensor& codes, const at::Tensor& /*scale*/,
                       const at::Tensor& /*zero_point*/, at::IntArrayRef block, int64_t bits,
                       std::string_view grid, c10::SymInt cols, at::ScalarType dtype) {
  check_codes(codes, block, bits, dtype);
  parse_grid("decode", grid);
  return at::empty_symint({codes.sym_size(0), std::move(cols)}, codes.options().dtype(dtype));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "encode(Tensor x, Tensor? scale, Tensor? zero_point, int[2] block, int bits, str grid, "
      "ScalarType scale_dtype) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode(Tensor codes, Tensor scale, Tensor zero_point, int[2] block, int bits, str grid, "
      "SymInt cols, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("encode", &encode_meta);
  m.impl("decode", &decode_meta);
}

}  // namespace qat
