#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>

#include "qat/ops/api.h"

namespace qat {

// Codes as the packed product (packed_linear.h) reads them: panels of 16 rows, whose words of 32
// bits lie side by side, so that one vector instruction takes the same columns of 16 rows. A word
// holds 8 neighbouring codes of a row in 4 bits, or 4 of them in 8, in two's complement; each group
// of columns begins a word. Rows and columns that are not there have code 0.
struct QAT_API PanelLayout {
  static constexpr int64_t kRows = 16;

  int64_t rows;
  int64_t cols;
  int64_t group_size;  // columns that share a scale; divides cols
  int bits;            // 4 or 8

  int64_t panels() const { return (rows + kRows - 1) / kRows; }
  int64_t groups() const { return cols / group_size; }
  int64_t codes_per_word() const { return 32 / bits; }
  int64_t words_per_group() const { return (group_size + codes_per_word() - 1) / codes_per_word(); }
  int64_t words() const { return groups() * words_per_group(); }
};

// The bit at which code `i` of a word begins. Of 4-bit codes the even ones have the lower half:
// pairs of neighbours then lie 16 bits apart, which is what products of bfloat16 pairs want.
constexpr int64_t bit_of(int64_t i, int64_t bits) {
  return bits == 8 ? 8 * i : 16 * (i % 2) + 4 * (i / 2);
}

// Raises ValueError for bits other than 4 and 8, and for groups that do not divide the columns.
QAT_API void check_panel_layout(const char* op, int64_t bits, int64_t group_size,
                                const c10::SymInt& cols);

// `codes` int8 [rows, cols] within `bits` (4 or 8); `group_size` divides cols. On return int32
// [panels, words, 16].
QAT_API at::Tensor pack_panels(const at::Tensor& codes, int64_t bits, int64_t group_size);

// The inverse: int8 [rows, cols].
QAT_API at::Tensor unpack_panels(const at::Tensor& panels, int64_t bits, int64_t group_size,
                                 int64_t rows, int64_t cols);

// One value for each row and group, [rows, groups] of any dtype, arranged like the words:
// [panels, groups, 16].
QAT_API at::Tensor pack_panel_values(const at::Tensor& values);
QAT_API at::Tensor unpack_panel_values(const at::Tensor& packed, int64_t rows);

}  // namespace qat
