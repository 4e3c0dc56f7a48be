#include "qat/solvers/gptq_solver.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <tuple>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/quantize.h"
#include "qat/ops/quantize_with_feedback.h"
#include "qat/solvers/coordinate_descent.h"
#include "qat/solvers/in_order.h"

namespace qat::solvers {
namespace {

// Rows that a pass over all codes moves at once where they answer for each other: the fewer, the more
// often all of the Hessian is read, and the more, the more often they undo each other.
constexpr int64_t kRowsAtOnce = 64;

}  // namespace

GptqSolver::GptqSolver(const at::Tensor& weight, const at::Tensor& upper, const QuantSpec& spec,
                       int bits, const GptqOptions& options, const at::Tensor& order,
                       const OuterParameters& outer, const std::optional<RowFeedback>& between_rows)
    : spec_(spec),
      quantizer_(quantizer_of(spec, bits, Quantizer::Mode::fixed)),
      options_(options),
      outer_(outer),
      between_rows_(between_rows),
      order_(order),
      weight_(weight) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const auto block = block_shape(spec);
  layout_ = make_layout(rows, cols, block[0], block[1]);
  pivots_ = upper.diagonal().clone();
  transfer_ = upper.div_(pivots_);
  codes_ = at::empty({rows, cols}, weight.options().dtype(code_dtype(spec.grid)));
  error_ = at::empty({rows, cols}, weight.options());
  residual_ = at::empty({rows, cols}, weight.options());
  scale_ = at::ones({layout_.grid_rows, layout_.grid_cols}, weight.options());
  zero_point_ = at::zeros_like(scale_, weight.options().dtype(quantizer_.zero_dtype()));
  groups_ = at::floor_divide(order, layout_.block_cols);
}

RoundedWeight GptqSolver::solve(const at::Tensor& original, const at::Tensor& importance) {
  if (!dynamic())
    std::tie(scale_, zero_point_) =
        choose_qparams(original, quantizer_.text(), name_of(options_.scale_search), importance,
                       outer_.scale, outer_.offset);
  round_all();
  if (settle()) round_all();
  if (options_.sweeps > 0) refine();
  return GptqSolver::finish();
}

int64_t GptqSolver::step() const {
  return std::min({options_.block_size, group(), kMostFeedbackColumns});
}

// Columns between two products with all that came before: whole groups, if there is more than
// one.
int64_t GptqSolver::panel_width() const {
  const int64_t least = std::min(options_.block_size, layout_.cols);
  if (one_group()) return least;
  return (least + group() - 1) / group() * group();
}

// The rows that are rounded now.
at::Tensor GptqSolver::rows(const at::Tensor& matrix) const {
  return matrix.slice(0, first_row_, end_row_);
}

// What they have of one entry a block of the grid.
at::Tensor GptqSolver::grid_rows(const at::Tensor& parameters) const {
  const int64_t height = layout_.block_rows;
  return parameters.slice(0, first_row_ / height, (end_row_ + height - 1) / height);
}

void GptqSolver::round_all() {
  const int64_t step = between_rows_ ? between_rows_->step() : layout_.rows;
  for (first_row_ = 0; first_row_ < layout_.rows; first_row_ = end_row_) {
    end_row_ = std::min(first_row_ + step, layout_.rows);
    if (first_row_ == 0) {
      wanted_ = rows(weight_);
      round_rows();
    } else {
      const at::Tensor moved = between_rows_->asked(error_, first_row_, end_row_);
      wanted_ = rows(weight_) + moved;
      round_rows();
      rows(error_).sub_(moved);
    }
  }
}

void GptqSolver::round_rows() {
  for (int64_t from = 0; from < layout_.cols; from += panel_width())
    round_panel(from, std::min(from + panel_width(), layout_.cols));
}

// Learned scales have outer ones by what they are, not by the ranges that they were chosen under.
// Training would begin on scales that are rounded once more, of other weights than those here: the
// weight is rounded under these. Returns whether they are others.
bool GptqSolver::settle() {
  if (spec_.range != Range::learned || !spec_.scale.has_outer()) return false;
  const auto zero_point =
      spec_.symmetric() ? std::nullopt : std::optional(zero_point_.to(at::kFloat));
  const auto [scale, zero] = round_qparams(scale_, quantizer_.text(), zero_point);
  const bool same = scale.equal(scale_) && (spec_.symmetric() || zero.equal(zero_point_));
  scale_ = scale;
  if (!spec_.symmetric()) zero_point_ = zero;
  chosen_ = true;
  return !same;
}

// Codes that were rounded early saw nothing of those that came after them. (16a)
void GptqSolver::refine() {
  first_row_ = 0;
  end_row_ = layout_.rows;
  const at::Tensor upper = transfer_ * pivots_;
  const auto row_hessian = between_rows_ ? std::optional(between_rows_->hessian()) : std::nullopt;
  const CoordinateDescent descent(at::mm(upper, upper.t()), row_hessian, kRowsAtOnce,
                                  quantizer_.text(), in_columns(scale_, groups_),
                                  in_columns(zero_point_, groups_));
  Assignment found{codes_, error_, residual_};
  for (int64_t sweep = 0; sweep < options_.sweeps; ++sweep)
    if (!descent.pass(weight_, found)) break;
  refined_ = true;
}

// What columns [from, to) get of the errors of columns [0, before). (16)
at::Tensor GptqSolver::asked(int64_t first, int64_t before, int64_t from, int64_t to) const {
  return at::mm(rows(error_).slice(1, first, before),
                transfer_.slice(0, first, before).slice(1, from, to));
}

void GptqSolver::round_panel(int64_t from, int64_t to) {
  const at::Tensor before = from > 0
                                ? asked(0, from, from, to)
                                : at::zeros({end_row_ - first_row_, to - from}, weight_.options());
  for (int64_t at = from; at < to; at += step()) {
    const int64_t end = std::min(at + step(), to);
    const bool begins = at % group() == 0;
    // A group is seen whole where its scale is chosen.
    const bool chooses = begins && dynamic() && !chosen_;
    const int64_t seen = chooses && !one_group() ? std::min(at + group(), to) : end;
    at::Tensor offset = before.slice(1, at - from, seen - from);
    if (at > from) offset = offset + asked(from, at, at, seen);
    if (chooses) choose_scale(at, offset);
    round_columns(at, end, offset.slice(1, 0, end - at));
  }
}

// From the group as it stands: what its columns would be if all of them could still be real. (17)
void GptqSolver::choose_scale(int64_t from, const at::Tensor& offset) {
  const int64_t to = one_group() ? layout_.cols : from + offset.size(1);
  at::Tensor current = wanted_.slice(1, from, to);
  if (from > 0) {
    const at::Tensor own = transfer_.slice(0, from, to).slice(1, from, to).contiguous();
    current = current + at::linalg_solve_triangular(own, offset.contiguous(), /*upper=*/true,
                                                    /*left=*/false, /*unitriangular=*/true);
  }
  const at::Tensor importance = pivots_.slice(0, from, to).square();
  Quantizer whole = quantizer_;
  whole.block[1] = -1;
  if (whole.has_outer_scale()) whole.outer_block[1] = -1;
  const int64_t place = groups_.select(0, from).item<int64_t>();
  const auto [scale, zero_point] =
      choose_qparams(current.contiguous(), whole.text(), name_of(options_.scale_search), importance,
                     outer_of(outer_.scale, place), outer_of(outer_.offset, place));
  grid_rows(scale_).slice(1, place, place + 1).copy_(scale);
  grid_rows(zero_point_).slice(1, place, place + 1).copy_(zero_point);
}

// The outer scales of a column of blocks of these rows.
std::optional<at::Tensor> GptqSolver::outer_of(const std::optional<at::Tensor>& outer,
                                               int64_t place) const {
  if (!outer || outer->numel() == 1) return outer;
  const int64_t width = quantizer_.outer_block[1];
  const int64_t column = width == -1 ? 0 : place * group() / width;
  const at::Tensor own = outer->size(0) == layout_.grid_rows ? grid_rows(*outer) : *outer;
  return own.slice(1, column, column + 1);
}

// One entry a row, from one a block; and a column for each of [from, to) where they differ.
at::Tensor GptqSolver::expanded(const at::Tensor& parameters, int64_t from, int64_t to) const {
  return in_columns(parameters, groups_.slice(0, from, dynamic() ? from + 1 : to));
}

// Of the rows that are rounded, one entry for each of these groups.
at::Tensor GptqSolver::in_columns(const at::Tensor& parameters, const at::Tensor& columns) const {
  const at::Tensor own = grid_rows(parameters).index_select(1, columns);
  if (layout_.grid_rows == layout_.rows) return own.contiguous();
  return own.repeat_interleave(layout_.block_rows, 0)
      .slice(0, 0, end_row_ - first_row_)
      .contiguous();
}

void GptqSolver::round_columns(int64_t from, int64_t to, const at::Tensor& offset) {
  const auto [codes, error, residual] =
      quantize_with_feedback(wanted_.slice(1, from, to), quantizer_.text(), offset,
                             transfer_.slice(0, from, to).slice(1, from, to),
                             expanded(scale_, from, to), expanded(zero_point_, from, to));
  rows(codes_).slice(1, from, to).copy_(codes);
  rows(error_).slice(1, from, to).copy_(error);
  rows(residual_).slice(1, from, to).copy_(residual);
}

// tr(ΔW (H + λI) ΔWᵀ): what was rounded is the weight itself but for what its columns ask (16), or
// also what its rows do.
double GptqSolver::loss() const {
  const at::Tensor missed =
      between_rows_ || refined_
          ? at::linalg_vector_norm(at::mm(error_, transfer_), 2, at::IntArrayRef{0})
          : at::linalg_vector_norm(residual_, 2, at::IntArrayRef{0});
  return (missed * pivots_).square().sum(at::kDouble).item<double>();
}

RoundedWeight GptqSolver::finish() const {
  const double error_of_output = loss();
  const at::Tensor back = at::argsort(order_);
  const bool moved = options_.order != ColumnOrder::plain;
  const at::Tensor codes = moved ? columns_in_order(codes_, back) : codes_;
  const at::Tensor rounded = dequantize(codes, scale_, zero_point_, block_shape(spec_), at::kFloat);
  const at::Tensor target =
      within_cell(codes, rounded, moved ? columns_in_order(residual_, back) : residual_);
  return {rounded, codes, scale_, zero_point_, target, error_of_output, ""};
}

// What was rounded, moved to within its cell where it was clipped, and never quite to the border.
// `residual` is overwritten: fresh memory costs more than all that is computed here.
at::Tensor GptqSolver::within_cell(const at::Tensor& codes, const at::Tensor& rounded,
                                   const at::Tensor& residual) const {
  const at::Tensor reach = expanded_scale().abs() * 0.49;
  if (layout_.cols % layout_.block_cols == 0)
    residual.view({layout_.rows, layout_.grid_cols, layout_.block_cols}).clamp_(-reach, reach);
  else
    residual.clamp_(-by_column(reach), by_column(reach));
  const at::Tensor target = residual.add_(rounded);
  // Rounded scales may move a border by the last bit.
  const at::Tensor other = codes != quantize(target, quantizer_.text(), scale_, zero_point_);
  return other.any().item<bool>() ? at::where(other, rounded, target) : target;
}

// The scale of each group of each row, [rows, groups, 1].
at::Tensor GptqSolver::expanded_scale() const {
  at::Tensor rows = scale_;
  if (layout_.grid_rows != layout_.rows)
    rows = rows.repeat_interleave(layout_.block_rows, 0).slice(0, 0, layout_.rows);
  return rows.unsqueeze(2);
}

at::Tensor GptqSolver::by_column(const at::Tensor& groups) const {
  return groups.expand({-1, -1, layout_.block_cols}).flatten(1).slice(1, 0, layout_.cols);
}

}  // namespace qat::solvers
