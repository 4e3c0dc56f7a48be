#include "qat/ops/pack.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/bitwise_or.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace qat {
namespace {

void check_pack_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE((bits >= 2 && bits <= 4) || bits == 8, "[", op,
                    "] bits must be 2, 3, 4 or 8, but is ", bits, ".");
}

// Codes that fill a whole number of words, and that number.
struct Run {
  int64_t codes;
  int64_t words;
};
Run run_of(int64_t bits) { return bits == 3 ? Run{32, 3} : Run{32 / bits, 1}; }

// Where each code of a run begins in word `word` of it: bits to shift left by, negative for right.
std::vector<int64_t> shifts(int64_t bits, int64_t word) {
  std::vector<int64_t> shifts;
  for (int64_t i = 0; i < run_of(bits).codes; ++i) shifts.push_back(bits * i - 32 * word);
  return shifts;
}

at::Tensor shift_tensor(const at::Tensor& like, const std::vector<int64_t>& shifts, int64_t sign) {
  std::vector<int64_t> values;
  values.reserve(shifts.size());
  // Shifted by 32 or more, nothing of a field is left in the word.
  for (const int64_t shift : shifts) values.push_back(std::clamp<int64_t>(sign * shift, 0, 32));
  return at::tensor(values, like.options());
}

at::Tensor pack_kernel(const at::Tensor& codes, int64_t bits) {
  check_pack_bits("pack", bits);
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar, "[pack] codes must be int8, but is ",
                   codes.scalar_type(), ".");
  TORCH_CHECK_VALUE(codes.dim() >= 1, "[pack] codes must have a last dimension, but is a scalar.");
  const Run run = run_of(bits);
  const c10::SymInt cols = codes.sym_size(-1);
  const c10::SymInt runs = (cols + (run.codes - 1)) / run.codes;
  const at::Tensor unsigned_codes =
      at::bitwise_and(codes.to(at::kInt).add(int64_t{1} << (bits - 1)), (int64_t{1} << bits) - 1);
  const at::Tensor padded =
      at::constant_pad_nd_symint(unsigned_codes, {0, runs * run.codes - cols});
  c10::SymDimVector shape(codes.sym_sizes().begin(), codes.sym_sizes().end());
  shape.back() = runs;
  shape.push_back(run.codes);
  const at::Tensor fields = padded.reshape_symint(shape);
  std::vector<at::Tensor> words;
  for (int64_t word = 0; word < run.words; ++word) {
    const auto by = shifts(bits, word);
    const at::Tensor moved = at::bitwise_right_shift(
        at::bitwise_left_shift(fields, shift_tensor(fields, by, 1)), shift_tensor(fields, by, -1));
    // The fields do not overlap, so their sum is their union; int32 wraps into the sign bit.
    words.push_back(moved.sum({-1}, /*keepdim=*/false, at::kInt));
  }
  return at::stack(words, -1).flatten(-2);
}

at::Tensor unpack_kernel(const at::Tensor& packed, int64_t bits, int64_t cols) {
  check_pack_bits("unpack", bits);
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
  // A field that straddles words needs them without their sign.
  const at::Tensor unsigned_words =
      run.words == 1 ? packed : at::bitwise_and(packed.to(at::kLong), 0xFFFFFFFF);
  const at::Tensor words = unsigned_words.reshape_symint(shape).unsqueeze(-1);
  at::Tensor fields;
  for (int64_t word = 0; word < run.words; ++word) {
    const at::Tensor one = words.select(-2, word);
    const auto by = shifts(bits, word);
    const at::Tensor moved = at::bitwise_left_shift(
        at::bitwise_right_shift(one, shift_tensor(one, by, 1)), shift_tensor(one, by, -1));
    fields = fields.defined() ? at::bitwise_or(fields, moved) : moved;
  }
  return at::bitwise_and(fields, (int64_t{1} << bits) - 1)
      .flatten(-2)
      .slice(-1, 0, cols)
      .sub(int64_t{1} << (bits - 1))
      .to(at::kChar, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous);
}

}  // namespace

int64_t packed_words(int64_t cols, int64_t bits) {
  const Run run = run_of(bits);
  return (cols + run.codes - 1) / run.codes * run.words;
}

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
