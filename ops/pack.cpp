#include "qat/ops/pack.h"

#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "qat/ops/call.h"
#include "qat/ops/checks.h"

namespace qat {
namespace {

// Codes that fill a whole number of words, and that number.
struct Run {
  int64_t codes;
  int64_t words;
};
Run run_of(int64_t bits) {
  if (32 % bits == 0) return {32 / bits, 1};
  return bits == 6 ? Run{16, 3} : Run{32, bits};
}

// Codes are taken one place of all runs after another, so that what is made on the way is no larger
// than the words.
at::Tensor pack_kernel(const at::Tensor& codes, int64_t bits) {
  check_bits("pack", bits);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar, "[pack] codes must be int8, but is ",
                   codes.scalar_type(), ".");
  TORCH_CHECK_VALUE(codes.dim() >= 1, "[pack] codes must have a last dimension, but is a scalar.");
  const Run run = run_of(bits);
  const int64_t zero = int64_t{1} << (bits - 1), mask = 2 * zero - 1;
  const c10::SymInt cols = codes.sym_size(-1), runs = (cols + (run.codes - 1)) / run.codes;
  c10::SymDimVector shape(codes.sym_sizes().begin(), codes.sym_sizes().end());
  shape.back() = runs;
  shape.push_back(run.words);
  const at::Tensor words = at::zeros_symint(shape, codes.options().dtype(at::kInt));
  shape.back() = run.codes;
  const at::Tensor fields =
      at::constant_pad_nd_symint(codes, {0, runs * run.codes - cols}, -zero).reshape_symint(shape);
  for (int64_t i = 0; i < run.codes; ++i) {
    const at::Tensor field = fields.select(-1, i).to(at::kInt).add_(zero).bitwise_and_(mask);
    const int64_t word = bits * i / 32, bit = bits * i % 32;
    words.select(-1, word).bitwise_or_(at::bitwise_left_shift(field, bit));
    if (bit + bits > 32)  // the rest of a field that straddles two words
      words.select(-1, word + 1).bitwise_or_(at::bitwise_right_shift(field, 32 - bit));
  }
  return words.flatten(-2);
}

at::Tensor unpack_kernel(const at::Tensor& packed, int64_t bits, int64_t cols) {
  check_bits("unpack", bits);
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kInt, "[unpack] packed must be int32, but is ",
                   packed.scalar_type(), ".");
  TORCH_CHECK_VALUE(packed.dim() >= 1,
                    "[unpack] packed must have a last dimension, but is a scalar.");
  const Run run = run_of(bits);
  const int64_t expected = packed_words(cols, bits);
  TORCH_CHECK_VALUE(packed.sym_size(-1) == expected, "[unpack] packed must have ", expected,
                    " words in its last dimension for ", cols, " codes of ", bits,
                    " bits, but has ", packed.sym_size(-1), ".");
  c10::SymDimVector shape(packed.sym_sizes().begin(), packed.sym_sizes().end());
  shape.back() = expected / run.words;
  shape.push_back(run.words);
  const at::Tensor words = packed.reshape_symint(shape);
  shape.back() = run.codes;
  const at::Tensor fields = at::empty_symint(shape, packed.options().dtype(at::kChar));
  const int64_t zero = int64_t{1} << (bits - 1), mask = 2 * zero - 1;
  for (int64_t i = 0; i < run.codes; ++i) {
    const int64_t word = bits * i / 32, bit = bits * i % 32, rest = bit + bits - 32;
    at::Tensor field = at::bitwise_right_shift(words.select(-1, word), bit).bitwise_and_(mask);
    if (rest > 0)  // whose own bits in this word are the lower ones; above them is its sign
      field.bitwise_and_(mask >> rest)
          .bitwise_or_(
              at::bitwise_left_shift(words.select(-1, word + 1), bits - rest).bitwise_and_(mask));
    fields.select(-1, i).copy_(field.sub_(zero));
  }
  return fields.flatten(-2).slice(-1, 0, cols).contiguous();
}

}  // namespace

int64_t packed_words(int64_t cols, int64_t bits) {
  const Run run = run_of(bits);
  return (cols + run.codes - 1) / run.codes * run.words;
}

at::Tensor pack(const at::Tensor& codes, int64_t bits) {
  return call<"qat::pack", decltype(pack)>(codes, bits);
}

at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t cols) {
  return call<"qat::unpack", decltype(unpack)>(packed, bits, cols);
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
