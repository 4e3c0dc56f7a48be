#include "qat/solvers/gptq.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <stdexcept>

#include "qat/error.h"
#include "qat/solvers/damped_factor.h"
#include "qat/solvers/full_precision.h"
#include "qat/solvers/gptq_solver.h"
#include "qat/solvers/in_order.h"
#include "qat/solvers/row_feedback.h"

namespace qat {
namespace {

void check(const at::Tensor& weight, const at::Tensor& hessian,
           const std::optional<at::Tensor>& drift, const std::optional<at::Tensor>& output_hessian,
           const GptqOptions& options) {
  if (weight.dim() != 2 || hessian.dim() != 2 || hessian.size(0) != weight.size(1) ||
      hessian.size(1) != weight.size(1) || (drift && drift->sizes() != hessian.sizes()))
    throw InvalidArgument(
        "GPTQ needs a Hessian, and a drift where one is given, of [in, in] for a weight [out, in], "
        "but their shapes do not agree.");
  if (output_hessian && (output_hessian->dim() != 2 || output_hessian->size(0) != weight.size(0) ||
                         output_hessian->size(1) != weight.size(0)))
    throw InvalidArgument(
        "GPTQ needs a Hessian of the output, where one is given, of [out, out] for a weight "
        "[out, in], but their shapes do not agree.");
  if (!solvers::all_finite(weight))
    throw InvalidArgument("GPTQ needs a finite weight, but it has NaN or infinite elements.");
  if (output_hessian && !solvers::all_finite(*output_hessian))
    throw InvalidArgument(
        "GPTQ needs a finite Hessian of the output, but it has NaN or infinite elements.");
  if (options.damping < 0.0 || options.output_damping < 0.0 || options.block_size < 1 ||
      options.sweeps < 0)
    throw InvalidArgument(
        "GPTQ needs a damping and sweeps of at least 0 and a block_size of at least 1.");
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
                            const std::optional<at::Tensor>& drift, const OuterParameters& outer,
                            const std::optional<at::Tensor>& output_hessian) {
  const at::NoGradGuard no_grad;
  const solvers::FullPrecision full;
  check(weight, hessian, drift, output_hessian, options);
  const at::Tensor master = weight.detach().to(at::kFloat);
  const auto block = block_shape(spec);
  const auto layout = make_layout(master.size(0), master.size(1), block[0], block[1]);
  // Inputs beyond the root of float32's largest number: every column counts alike, and nothing is
  // known of their drift.
  const bool is_known = solvers::all_finite(hessian);
  const bool corrects = options.correction != 0.0 && is_known && solvers::all_finite(*drift);
  const at::Tensor order =
      column_order(hessian, options.order, layout.block_cols).to(master.device());
  const bool moved = options.order != ColumnOrder::plain;
  const solvers::Factor factor =
      solvers::damped_factor(hessian.to(at::kFloat), order, options.damping);
  at::Tensor wanted = moved ? solvers::columns_in_order(master, order) : master;
  if (corrects)
    wanted = corrected(wanted, factor.upper, solvers::square_in_order(*drift, order),
                       options.correction);
  OuterParameters settled = outer_parameters(master, spec, bits, outer);
  at::Tensor importance = hessian.diagonal().to(at::kFloat).contiguous();
  if (!is_known) importance = at::ones_like(importance);
  std::optional<solvers::RowFeedback> between_rows;
  at::Tensor original = master;
  if (output_hessian) {
    between_rows.emplace(output_hessian->to(master.device(), at::kFloat), options.output_damping,
                         layout.block_rows);
    const at::Tensor& rows = between_rows->order();
    wanted = solvers::rows_in_order(wanted, rows);
    original = solvers::rows_in_order(original, rows);
    for (std::optional<at::Tensor>* parameters : {&settled.scale, &settled.offset})
      if (*parameters) *parameters = solvers::rows_in_order(**parameters, rows);
  }
  RoundedWeight result =
      solvers::GptqSolver(wanted, factor.upper, spec, bits, options, order, settled, between_rows)
          .solve(original, importance);
  if (between_rows) {
    const at::Tensor back = at::argsort(between_rows->order());
    for (at::Tensor* part :
         {&result.weight, &result.codes, &result.scale, &result.zero_point, &result.target})
      *part = solvers::rows_in_order(*part, back);
  }
  result.warning = factor.warning;
  if (options.correction != 0.0 && is_known && !corrects)
    result.warning += std::string(result.warning.empty() ? "" : ", and ") +
                      "the drift of its inputs is not finite, so it was not made good";
  if (between_rows && !between_rows->warning().empty())
    result.warning += (result.warning.empty() ? "" : ", and ") + between_rows->warning();
  return result;
}

}  // namespace qat
