#include "qat/solvers/gptq.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/quantize.h"
#include "qat/ops/quantize_with_feedback.h"
#include "qat/solvers/damped_factor.h"
#include "qat/solvers/full_precision.h"

namespace qat {
namespace {

void check(const at::Tensor& weight, const at::Tensor& hessian,
           const std::optional<at::Tensor>& drift, const GptqOptions& options) {
  if (weight.dim() != 2 || hessian.dim() != 2 || hessian.size(0) != weight.size(1) ||
      hessian.size(1) != weight.size(1) || (drift && drift->sizes() != hessian.sizes()))
    throw InvalidArgument(
        "GPTQ needs a Hessian, and a drift where one is given, of [in, in] for a weight [out, in], "
        "but their shapes do not agree.");
  if (!solvers::all_finite(weight))
    throw InvalidArgument("GPTQ needs a finite weight, but it has NaN or infinite elements.");
  if (options.damping < 0.0 || options.block_size < 1)
    throw InvalidArgument("GPTQ needs a damping of at least 0 and a block_size of at least 1.");
  if (options.correction != 0.0 && !drift)
    throw InvalidArgument("GPTQ needs a drift for a correction, but none is given.");
}

// (18) The weight whose output on the quantized model's inputs is nearest to that of the float
// model on its own.
at::Tensor corrected(const at::Tensor& weight, const at::Tensor& upper, const at::Tensor& drift,
                     double share) {
  const at::Tensor pull = at::mm(weight, drift);
  const at::Tensor half = at::linalg_solve_triangular(upper.t(), pull, /*upper=*/false,
                                                      /*left=*/false);
  return weight + at::linalg_solve_triangular(upper, half, /*upper=*/true, /*left=*/false) * share;
}

at::Tensor column_order(const at::Tensor& hessian, ColumnOrder order, int64_t group) {
  const int64_t cols = hessian.size(0);
  const at::Tensor importance = hessian.diagonal().contiguous();
  if (order == ColumnOrder::column) return at::argsort(importance, /*stable=*/true, 0, true);
  if (order == ColumnOrder::plain) return at::arange(cols, at::kLong);
  // Whole groups come first; a short last one stays last, so that groups stay where blocks are.
  const int64_t whole = cols / group;
  const at::Tensor head = importance.slice(0, 0, whole * group).view({whole, group});
  const at::Tensor groups = at::argsort(head.amax(1), /*stable=*/true, 0, true);
  const at::Tensor within = at::argsort(head, /*stable=*/true, 1, true);
  const at::Tensor places = (within + at::arange(whole, within.options()).unsqueeze(1) * group)
                                .index_select(0, groups)
                                .flatten();
  if (whole * group == cols) return places;
  const at::Tensor tail =
      at::argsort(importance.slice(0, whole * group), /*stable=*/true, 0, true) + whole * group;
  return at::cat({places, tail});
}

// The state of one solve. Columns stand in the order in which they are rounded.
class Solver {
 public:
  // `upper` is overwritten.
  Solver(const at::Tensor& weight, const at::Tensor& upper, const QuantSpec& spec, int bits,
         const GptqOptions& options, const at::Tensor& order, const OuterParameters& outer)
      : spec_(spec),
        quantizer_(quantizer_of(spec, bits, Quantizer::Mode::fixed)),
        options_(options),
        outer_(outer),
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

  // `original`: the weight in its own order, from which scales that cannot wait are chosen.
  RoundedWeight solve(const at::Tensor& original, const at::Tensor& importance) {
    if (!dynamic())
      std::tie(scale_, zero_point_) =
          choose_qparams(original, quantizer_.text(), name_of(options_.scale_search), importance,
                         outer_.scale, outer_.offset);
    round_all();
    if (settle()) round_all();
    return finish();
  }

 private:
  bool dynamic() const { return options_.order != ColumnOrder::column; }
  int64_t group() const { return layout_.block_cols; }
  bool one_group() const { return layout_.grid_cols == 1; }
  int64_t step() const { return std::min({options_.block_size, group(), kMostFeedbackColumns}); }

  // Columns between two products with all that came before: whole groups, if there is more than
  // one.
  int64_t panel_width() const {
    const int64_t least = std::min(options_.block_size, layout_.cols);
    if (one_group()) return least;
    return (least + group() - 1) / group() * group();
  }

  void round_all() {
    for (int64_t from = 0; from < layout_.cols; from += panel_width())
      round_panel(from, std::min(from + panel_width(), layout_.cols));
  }

  // Learned scales have outer ones by what they are, not by the ranges that they were chosen under.
  // Training would begin on scales that are rounded once more, of other weights than those here: the
  // weight is rounded under these. Returns whether they are others.
  bool settle() {
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

  // What columns [from, to) get of the errors of columns [0, before). (16)
  at::Tensor asked(int64_t first, int64_t before, int64_t from, int64_t to) const {
    return at::mm(error_.slice(1, first, before),
                  transfer_.slice(0, first, before).slice(1, from, to));
  }

  void round_panel(int64_t from, int64_t to) {
    const at::Tensor before = from > 0 ? asked(0, from, from, to)
                                       : at::zeros({layout_.rows, to - from}, weight_.options());
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
  void choose_scale(int64_t from, const at::Tensor& offset) {
    const int64_t to = one_group() ? layout_.cols : from + offset.size(1);
    at::Tensor current = weight_.slice(1, from, to);
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
        choose_qparams(current.contiguous(), whole.text(), name_of(options_.scale_search),
                       importance, outer_of(outer_.scale, place), outer_of(outer_.offset, place));
    scale_.slice(1, place, place + 1).copy_(scale);
    zero_point_.slice(1, place, place + 1).copy_(zero_point);
  }

  // The outer scales of a column of blocks.
  std::optional<at::Tensor> outer_of(const std::optional<at::Tensor>& outer, int64_t place) const {
    if (!outer || outer->numel() == 1) return outer;
    const int64_t width = quantizer_.outer_block[1];
    const int64_t column = width == -1 ? 0 : place * group() / width;
    return outer->slice(1, column, column + 1);
  }

  // One entry a row, from one a block; and a column for each of [from, to) where they differ.
  at::Tensor expanded(const at::Tensor& parameters, int64_t from, int64_t to) const {
    at::Tensor own = dynamic() ? parameters.index_select(1, groups_.slice(0, from, from + 1))
                               : parameters.index_select(1, groups_.slice(0, from, to));
    if (layout_.grid_rows == layout_.rows) return own.contiguous();
    return own.repeat_interleave(layout_.block_rows, 0).slice(0, 0, layout_.rows).contiguous();
  }

  void round_columns(int64_t from, int64_t to, const at::Tensor& offset) {
    const auto [codes, error, residual] =
        quantize_with_feedback(weight_.slice(1, from, to), quantizer_.text(), offset,
                               transfer_.slice(0, from, to).slice(1, from, to),
                               expanded(scale_, from, to), expanded(zero_point_, from, to));
    codes_.slice(1, from, to).copy_(codes);
    error_.slice(1, from, to).copy_(error);
    residual_.slice(1, from, to).copy_(residual);
  }

  RoundedWeight finish() const {
    const at::Tensor back = at::argsort(order_);
    const double loss = (at::linalg_vector_norm(residual_, 2, at::IntArrayRef{0}) * pivots_)
                            .square()
                            .sum(at::kDouble)
                            .item<double>();
    const bool moved = options_.order != ColumnOrder::plain;
    const at::Tensor codes = moved ? solvers::columns_in_order(codes_, back) : codes_;
    const at::Tensor rounded =
        dequantize(codes, scale_, zero_point_, block_shape(spec_), at::kFloat);
    const at::Tensor target =
        within_cell(codes, rounded, moved ? solvers::columns_in_order(residual_, back) : residual_);
    return {rounded, codes, scale_, zero_point_, target, loss, ""};
  }

  // What was rounded, moved to within its cell where it was clipped, and never quite to the border.
  // `residual` is overwritten: fresh memory costs more than all that is computed here.
  at::Tensor within_cell(const at::Tensor& codes, const at::Tensor& rounded,
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
  at::Tensor expanded_scale() const {
    at::Tensor rows = scale_;
    if (layout_.grid_rows != layout_.rows)
      rows = rows.repeat_interleave(layout_.block_rows, 0).slice(0, 0, layout_.rows);
    return rows.unsqueeze(2);
  }

  at::Tensor by_column(const at::Tensor& groups) const {
    return groups.expand({-1, -1, layout_.block_cols}).flatten(1).slice(1, 0, layout_.cols);
  }

  const QuantSpec& spec_;
  Quantizer quantizer_;
  const GptqOptions& options_;
  OuterParameters outer_;
  at::Tensor order_;
  at::Tensor weight_;
  BlockLayout layout_{};
  at::Tensor pivots_;    // diagonal of R
  at::Tensor transfer_;  // R_ij / R_jj
  at::Tensor groups_;    // group of each column
  at::Tensor codes_;
  at::Tensor error_;  // weight - rounded
  at::Tensor scale_, zero_point_;
  bool chosen_ = false;  // they stay as they are
  at::Tensor residual_;  // what was rounded less what it was rounded to
};

}  // namespace

const NameTable<ColumnOrder>& column_orders() {
  static const NameTable<ColumnOrder> names("order", {{ColumnOrder::plain, "plain"},
                                                      {ColumnOrder::group, "group"},
                                                      {ColumnOrder::column, "column"}});
  return names;
}

const char* name_of(ColumnOrder order) { return column_orders().name_of(order); }

ColumnOrder parse_column_order(const std::string& name) { return column_orders().parse(name); }

RoundedWeight solvers::gptq(const at::Tensor& weight, const at::Tensor& hessian,
                            const QuantSpec& spec, int bits, const GptqOptions& options,
                            const std::optional<at::Tensor>& drift, const OuterParameters& outer) {
  const at::NoGradGuard no_grad;
  const solvers::FullPrecision full;
  check(weight, hessian, drift, options);
  const at::Tensor master = weight.detach().to(at::kFloat);
  const auto block = block_shape(spec);
  const int64_t group = make_layout(master.size(0), master.size(1), block[0], block[1]).block_cols;
  const at::Tensor order = column_order(hessian, options.order, group).to(master.device());
  const bool moved = options.order != ColumnOrder::plain;
  const solvers::Factor factor =
      solvers::damped_factor(hessian.to(at::kFloat), order, options.damping);
  at::Tensor wanted = moved ? solvers::columns_in_order(master, order) : master;
  if (options.correction != 0.0)
    wanted = corrected(wanted, factor.upper, solvers::square_in_order(*drift, order),
                       options.correction);
  RoundedWeight result = Solver(wanted, factor.upper, spec, bits, options, order,
                                outer_parameters(master, spec, bits, outer))
                             .solve(master, hessian.diagonal().to(at::kFloat).contiguous());
  result.warning = factor.warning;
  return result;
}

}  // namespace qat
