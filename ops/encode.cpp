#include "qat/ops/encode.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>

#include "qat/ops/call.h"
#include "qat/ops/kept_memory.h"
#include "qat/ops/kernels.h"

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

Quantizer check_encode(const at::Tensor& x, std::string_view text,
                       const Quantizer::Parameters& given) {
  check_input("encode", x);
  Quantizer quantizer = checked("encode", text);
  if (!given.scale && !quantizer.finds()) quantizer.mode = Quantizer::Mode::minmax;
  check_parameters("encode", quantizer, x, given);
  return quantizer;
}

void check_sizes(const at::Tensor& codes, const BlockLayout& layout, int64_t bits,
                 const at::Tensor& scale, const at::Tensor& zero_point) {
  const int64_t bytes = code_layout(layout, bits).per_row, blocks = layout.blocks();
  TORCH_CHECK_VALUE(codes.size(1) == bytes, "[decode] codes must have ", bytes, " bytes a row for ",
                    layout.cols, " columns, but have ", codes.size(1), ".");
  TORCH_CHECK_VALUE(scale.numel() == blocks && zero_point.numel() == blocks,
                    "[decode] scale and zero_point must have ", blocks, " entries, but have ",
                    scale.numel(), " and ", zero_point.numel(), ".");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode(const at::Tensor& x,
                                                      std::string_view quantizer,
                                                      const OptionalTensor& scale,
                                                      const OptionalTensor& zero_point,
                                                      const OptionalTensor& outer_scale) {
  return call<"qat::encode", decltype(encode)>(x, quantizer, scale, zero_point, outer_scale);
}

at::Tensor decode(const at::Tensor& codes, std::string_view quantizer, const at::Tensor& scale,
                  const at::Tensor& zero_point, c10::SymInt cols, at::ScalarType dtype) {
  return call<"qat::decode", decltype(decode)>(codes, quantizer, scale, zero_point, std::move(cols),
                                               dtype);
}

namespace {

// code_layout with symbolic sizes.
c10::SymInt bytes_per_row(const at::Tensor& x, const Quantizer& quantizer) {
  const c10::SymInt cols = matrix_sizes(x).second;
  const c10::SymInt grid_cols = grid_sizes(x, quantizer.block).second;
  const auto bytes = [&](const c10::SymInt& length) {
    return quantizer.bits <= 4 ? (length + 1) / 2 : length;
  };
  const int64_t block_cols = quantizer.block[1];
  const c10::SymInt whole = block_cols == -1 ? cols : c10::SymInt(block_cols);
  return (grid_cols - 1) * bytes(whole) + bytes(cols - (grid_cols - 1) * whole);
}

}  // namespace

void implement_encode(torch::Library& m, const EncodeKernels& kernels) {
  using Encoded = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  m.impl("encode",
         [kernels](const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
                   const OptionalTensor& zero_point, const OptionalTensor& outer_scale) -> Encoded {
           const Quantizer::Parameters given{scale, zero_point, outer_scale};
           const Blocks blocks(x, check_encode(x, text, given));
           const auto& [input, quantizer, layout] = blocks;
           const c10::DeviceGuard on_device(x.device());
           const at::Tensor codes =
               kept_empty_symint({matrix_sizes(x).first, bytes_per_row(x, quantizer)},
                                 x.options().dtype(at::kByte), Fit::tight);
           const bool by_range = !scale && quantizer.mode == Quantizer::Mode::minmax &&
                                 layout.block_rows == 1 && !quantizer.has_outer_scale();
           if (x.is_meta() || (by_range && kernels.find_and_encode)) {
             const FoundTensors found = empty_parameters(x, quantizer);
             if (!x.is_meta()) kernels.find_and_encode(blocks, found, codes);
             return {codes, found.scale, found.zero_point};
           }
           const StoredTensors stored = stored_parameters(x, quantizer, given);
           const at::Tensor kept = stored.scale.clone();
           kernels.encode(blocks, stored, codes, kept);
           return {codes, kept,
                   stored.zero_point ? stored.zero_point->to(at::kChar)
                                     : at::zeros_like(kept, kept.options().dtype(at::kChar))};
         });
  m.impl("decode",
         // NOLINTNEXTLINE(performance-unnecessary-value-param): schema
         [kernels](const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
                   const at::Tensor& zero_point, c10::SymInt cols, at::ScalarType dtype) {
           const Quantizer quantizer = check_codes(codes, text, scale, zero_point, dtype);
           const c10::DeviceGuard on_device(codes.device());
           const at::Tensor y =
               kept_empty_symint({codes.sym_size(0), cols}, codes.options().dtype(dtype));
           if (codes.is_meta()) return y;
           const BlockLayout layout = make_layout(codes.size(0), cols.expect_int(),
                                                  quantizer.block[0], quantizer.block[1]);
           check_sizes(codes, layout, quantizer.bits, scale, zero_point);
           kernels.decode(codes.contiguous(), layout, quantizer, scale.contiguous(),
                          zero_point.contiguous(), y);
           return y;
         });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "encode(Tensor x, str quantizer, Tensor? scale=None, Tensor? zero_point=None, "
      "Tensor? outer_scale=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode(Tensor codes, str quantizer, Tensor scale, Tensor zero_point, SymInt cols, "
      "ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { implement_encode(m, {}); }

}  // namespace qat
