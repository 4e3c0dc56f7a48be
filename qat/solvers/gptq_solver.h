#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "qat/ops/blocks.h"
#include "qat/ops/quantizer.h"
#include "qat/outer_parameters.h"
#include "qat/solvers/gptq.h"
#include "qat/solvers/row_feedback.h"
#include "qat/spec.h"

namespace qat::solvers {

// The state of one solve by GPTQ. Columns stand in the order in which they are rounded; rows are
// rounded together, or block after block where they owe something to each other.
class GptqSolver {
 public:
  // `upper` is overwritten.
  GptqSolver(const at::Tensor& weight, const at::Tensor& upper, const QuantSpec& spec, int bits,
             const GptqOptions& options, const at::Tensor& order, const OuterParameters& outer,
             const std::optional<RowFeedback>& between_rows);

  // `original`: the weight in its own order, from which scales that cannot wait are chosen.
  RoundedWeight solve(const at::Tensor& original, const at::Tensor& importance);

 private:
  bool dynamic() const { return options_.order != ColumnOrder::column; }
  int64_t group() const { return layout_.block_cols; }
  bool one_group() const { return layout_.grid_cols == 1; }
  int64_t step() const;
  int64_t panel_width() const;
  at::Tensor rows(const at::Tensor& matrix) const;
  at::Tensor grid_rows(const at::Tensor& parameters) const;
  void round_all();
  void round_rows();
  bool settle();
  void refine();
  at::Tensor asked(int64_t first, int64_t before, int64_t from, int64_t to) const;
  void round_panel(int64_t from, int64_t to);
  void choose_scale(int64_t from, const at::Tensor& offset);
  std::optional<at::Tensor> outer_of(const std::optional<at::Tensor>& outer, int64_t place) const;
  at::Tensor expanded(const at::Tensor& parameters, int64_t from, int64_t to) const;
  at::Tensor in_columns(const at::Tensor& parameters, const at::Tensor& columns) const;
  void round_columns(int64_t from, int64_t to, const at::Tensor& offset);
  double loss() const;
  RoundedWeight finish() const;
  at::Tensor within_cell(const at::Tensor& codes, const at::Tensor& rounded,
                         const at::Tensor& residual) const;
  at::Tensor expanded_scale() const;
  at::Tensor by_column(const at::Tensor& groups) const;

  const QuantSpec& spec_;
  Quantizer quantizer_;
  const GptqOptions& options_;
  OuterParameters outer_;
  const std::optional<RowFeedback>& between_rows_;
  at::Tensor order_;
  at::Tensor weight_;
  BlockLayout layout_{};
  int64_t first_row_ = 0, end_row_ = 0;  // the block of rows that is rounded
  at::Tensor wanted_;                    // these rows, moved by what those before ask
  at::Tensor pivots_;                    // diagonal of R
  at::Tensor transfer_;                  // R_ij / R_jj
  at::Tensor groups_;                    // group of each column
  at::Tensor codes_;
  at::Tensor error_;  // weight - rounded; of the rows that are rounded, wanted - rounded
  at::Tensor scale_, zero_point_;
  bool chosen_ = false;   // they stay as they are
  at::Tensor residual_;   // what was rounded less what it was rounded to
  bool refined_ = false;  // residuals are no longer those of (16)
};

}  // namespace qat::solvers
