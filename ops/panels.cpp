#include "qat/ops/panels.h"

#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "qat/ops/call.h"

namespace qat {

void check_panel_layout(const char* op, int64_t bits, int64_t group_size, const c10::SymInt& cols) {
  TORCH_CHECK_VALUE(bits == 4 || bits == 8, "[", op, "] bits must be 4 or 8, but is ", bits, ".");
  TORCH_CHECK_VALUE(group_size >= 1, "[", op, "] group_size must be at least 1, but is ",
                    group_size, ".");
  TORCH_CHECK_VALUE(cols % group_size == 0, "[", op, "] group_size must divide the ", cols,
                    " columns, but is ", group_size, ".");
}

namespace {

at::Tensor pack_panels_kernel(const at::Tensor& codes, int64_t bits, int64_t group_size) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kChar && codes.dim() == 2,
                   "[pack_panels] codes must be int8 [rows, cols].");
  check_panel_layout("pack_panels", bits, group_size, codes.sym_size(1));
  const PanelLayout layout{codes.size(0), codes.size(1), group_size, static_cast<int>(bits)};
  const int64_t panels = layout.panels(), groups = layout.groups();
  const int64_t per_word = layout.codes_per_word(), words = layout.words_per_group();
  const int64_t rows = panels * PanelLayout::kRows;
  at::Tensor grouped =
      at::constant_pad_nd(codes, {0, 0, 0, rows - layout.rows}).view({rows, groups, group_size});
  grouped = at::constant_pad_nd(grouped, {0, words * per_word - group_size})
                .view({panels, PanelLayout::kRows, groups * words, per_word});
  // Codes are taken one place of all words after another, so that what is made on the way is no
  // larger than the words.
  const at::Tensor result =
      at::zeros({panels, groups * words, PanelLayout::kRows}, codes.options().dtype(at::kInt));
  for (int64_t i = 0; i < per_word; ++i)
    result.bitwise_or_(grouped.select(-1, i)
                           .transpose(1, 2)
                           .to(at::kInt)
                           .bitwise_and_((int64_t{1} << bits) - 1)
                           .bitwise_left_shift_(bit_of(i, bits)));
  return result;
}

at::Tensor unpack_panels_kernel(const at::Tensor& panels, int64_t bits, int64_t group_size,
                                int64_t rows, int64_t cols) {
  check_panel_layout("unpack_panels", bits, group_size, cols);
  const PanelLayout layout{rows, cols, group_size, static_cast<int>(bits)};
  TORCH_CHECK_VALUE(panels.scalar_type() == at::kInt && panels.dim() == 3 &&
                        panels.size(0) == layout.panels() && panels.size(1) == layout.words() &&
                        panels.size(2) == PanelLayout::kRows,
                    "[unpack_panels] panels must be int32 [", layout.panels(), ", ", layout.words(),
                    ", ", PanelLayout::kRows, "] for ", rows, " rows of ", cols, " codes.");
  const at::Tensor words = panels.transpose(1, 2);
  const int64_t per_word = layout.codes_per_word();
  const at::Tensor codes =
      at::empty({layout.panels(), PanelLayout::kRows, layout.words(), per_word},
                panels.options().dtype(at::kChar));
  for (int64_t i = 0; i < per_word; ++i)  // to the top of the word, and down again with its sign
    codes.select(-1, i).copy_(
        at::bitwise_left_shift(words, 32 - bits - bit_of(i, bits)).bitwise_right_shift_(32 - bits));
  return codes
      .reshape({layout.panels() * PanelLayout::kRows, layout.groups(),
                layout.words_per_group() * per_word})
      .slice(2, 0, group_size)
      .flatten(1)
      .slice(0, 0, rows)
      .contiguous();
}

at::Tensor pack_panel_values_kernel(const at::Tensor& values) {
  const c10::SymInt rows = values.sym_size(0), groups = values.sym_size(1);
  const c10::SymInt panels = (rows + (PanelLayout::kRows - 1)) / PanelLayout::kRows;
  return at::constant_pad_nd_symint(values, {0, 0, 0, panels * PanelLayout::kRows - rows})
      .view_symint({panels, PanelLayout::kRows, groups})
      .transpose(1, 2)
      .contiguous();
}

at::Tensor unpack_panel_values_kernel(const at::Tensor& packed, int64_t rows) {
  TORCH_CHECK_VALUE(packed.dim() == 3 && packed.size(2) == PanelLayout::kRows && rows >= 0 &&
                        rows <= packed.size(0) * PanelLayout::kRows,
                    "[unpack_panel_values] packed must be [panels, groups, ", PanelLayout::kRows,
                    "] with panels for all of ", rows, " rows, but is ", packed.sizes(), ".");
  return packed.transpose(1, 2).flatten(0, 1).slice(0, 0, rows).contiguous();
}

at::Tensor pack_panels_meta(const at::Tensor& codes, int64_t bits, int64_t group_size) {
  check_panel_layout("pack_panels", bits, group_size, codes.sym_size(1));
  const c10::SymInt rows = codes.sym_size(0), cols = codes.sym_size(1);
  const int64_t per_word = 32 / bits, words = (group_size + per_word - 1) / per_word;
  return at::empty_symint({(rows + (PanelLayout::kRows - 1)) / PanelLayout::kRows,
                           cols / group_size * words, PanelLayout::kRows},
                          codes.options().dtype(at::kInt));
}

at::Tensor unpack_panels_meta(const at::Tensor& panels, int64_t, int64_t, int64_t rows,
                              int64_t cols) {
  return at::empty({rows, cols}, panels.options().dtype(at::kChar));
}

}  // namespace

at::Tensor pack_panels(const at::Tensor& codes, int64_t bits, int64_t group_size) {
  return call<"qat::pack_panels", decltype(pack_panels)>(codes, bits, group_size);
}

at::Tensor unpack_panels(const at::Tensor& panels, int64_t bits, int64_t group_size, int64_t rows,
                         int64_t cols) {
  return call<"qat::unpack_panels", decltype(unpack_panels)>(panels, bits, group_size, rows, cols);
}

at::Tensor pack_panel_values(const at::Tensor& values) {
  return call<"qat::pack_panel_values", decltype(pack_panel_values)>(values);
}

at::Tensor unpack_panel_values(const at::Tensor& packed, int64_t rows) {
  return call<"qat::unpack_panel_values", decltype(unpack_panel_values)>(packed, rows);
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def("pack_panels(Tensor codes, int bits, int group_size) -> Tensor");
  m.def("unpack_panels(Tensor panels, int bits, int group_size, int rows, int cols) -> Tensor");
  m.def("pack_panel_values(Tensor values) -> Tensor");
  m.def("unpack_panel_values(Tensor packed, int rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("pack_panels", &pack_panels_kernel);
  m.impl("unpack_panels", &unpack_panels_kernel);
  m.impl("pack_panel_values", &pack_panel_values_kernel);
  m.impl("unpack_panel_values", &unpack_panel_values_kernel);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("pack_panels", &pack_panels_meta);
  m.impl("unpack_panels", &unpack_panels_meta);
}

}  // namespace qat
