#include "ops/pack.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

namespace qat {
namespace {

void check_pack_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE(bits == 2 || bits == 4 || bits == 8, "[", op,
                    "] bits must be 2, 4 or 8, but is ", bits, ".");
}

at::Tensor shifts(const at::Tensor& like, int64_t bits) {
  return at::arange(0, 32, bits, like.options().dtype(at::kInt));
}

at::Tensor pack_kernel(const at::Tensor& codes, int64_t bits) {
  check_pack_bits("pack", bits);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar, "[pack] codes must be int8, but is ",
                   codes.scalar_type(), ".");
  TORCH_CHECK_VALUE(codes.dim() >= 1, "[pack] codes must have a last dimension, but is a scalar.");
  const int64_t per_word = 32 / bits;
  const c10::SymInt cols = codes.sym_size(-1);
  const c10::SymInt words = (cols + (per_word - 1)) / per_word;
  const at::Tensor unsigned_codes =
      at::bitwise_and(codes.to(at::kInt).add(int64_t{1} << (bits - 1)), (int64_t{1} << bits) - 1);
  const at::Tensor padded =
      at::constant_pad_nd_symint(unsigned_codes, {0, words * per_word - cols});
  c10::SymDimVector shape(codes.sym_sizes().begin(), codes.sym_sizes().end());
  shape.back() = words;
  shape.push_back(per_word);
  // The fields do not overlap, so their sum is their union; int32 wraps into the sign bit.
  return at::bitwise_left_shift(padded.reshape_symint(shape), shifts(codes, bits))
      .sum({-1}, /*keepdim=*/false, at::kInt);
}

at::Tensor unpack_kernel(const at::Tensor& packed, int64_t bits, int64_t cols) {
  check_pack_bits("unpack", bits);
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kInt, "[unpack] packed must be int32, but is ",
                   packed.scalar_type(), ".");
  TORCH_CHECK_VALUE(packed.dim() >= 1,
                    "[unpack] packed must have a last dimension, but is a scalar.");
  const int64_t per_word = 32 / bits;
  TORCH_CHECK_VALUE(packed.sym_size(-1) == (cols + per_word - 1) / per_word,
                    "[unpack] packed must have ", (cols + per_word - 1) / per_word,
                    " words in its last dimension for ", cols, " codes of ", bits,
                    " bits, but has ", packed.sym_size(-1), ".");
  const at::Tensor fields =
      at::bitwise_and(at::bitwise_right_shift(packed.unsqueeze(-1), shifts(packed, bits)),
                      (int64_t{1} << bits) - 1);
  return fields.flatten(-2)
      .slice(-1, 0, cols)
      .sub(int64_t{1} << (bits - 1))
      .to(at::kChar, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous);
}

}  // namespace

at::Tensor pack(const at::Tensor& codes, int64_t bits) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::pack", "").typed<decltype(pack)>();
  return op.call(codes, bits);
}

at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t cols) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("qat::unpack", "").typed<decltype(unpack)>();
  return op.call(packed, bits, cols);
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def("pack(Tensor codes, int bits) -> Tensor");
  m.def("unpack(Tensor packed, int bits, int cols) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("pack", &pack_kernel);
  m.impl("unpack", &unpack_kernel);
}

}  // namespace qat
