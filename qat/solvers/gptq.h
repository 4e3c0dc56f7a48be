#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "qat/names.h"
#include "qat/ops/api.h"
#include "qat/outer_parameters.h"
#include "qat/solvers/scale_search.h"
#include "qat/spec.h"

namespace qat {

// In which order GPTQ rounds the columns. Codes are stored in the order of the weight either way.
enum class ColumnOrder {
  plain,   // as they stand
  group,   // groups by their largest Hessian entry, and columns so within a group; scales as in
           // plain
  column,  // columns by their Hessian entry alone; scales chosen beforehand from the float weight
};

// Their names, as recipes spell them.
QAT_API const NameTable<ColumnOrder>& column_orders();
QAT_API const char* name_of(ColumnOrder order);
// Throws std::invalid_argument with the allowed names.
QAT_API ColumnOrder parse_column_order(const std::string& name);

struct QAT_API GptqOptions {
  double damping = 0.01;  // share of the Hessian's mean diagonal that is added to the diagonal
  int64_t block_size =
      128;  // columns between two updates of the rest; changes no result but in rounding
  ColumnOrder order = ColumnOrder::group;
  ScaleSearch scale_search = ScaleSearch::mse;
  double correction = 0.0;      // share of the float model's drift that is made good, 0 to 1; (18)
  double output_damping = 0.1;  // as `damping`, of the Hessian of the output; (39)
  int64_t sweeps = 4;  // passes that follow, over codes that see all others; coordinate_descent.h
};

// A weight on its grid: weight = (codes - zero_point) * scale, float32 [out, in].
struct QAT_API RoundedWeight {
  at::Tensor weight;
  at::Tensor codes;       // int8 [out, in]
  at::Tensor scale;       // float32 [grid_rows, grid_cols], rounded to the spec's scale_dtype
  at::Tensor zero_point;  // int8, shaped like `scale`; on the grid of offsets the offset, float32
  at::Tensor target;      // float32 [out, in]: what was rounded to `weight`; see below
  double loss = 0.0;      // tr(ΔW H ΔWᵀ) with the damped H: the mean squared error of the output
  std::string warning;    // what the solver had to do differently, a sentence; empty as a rule
};

namespace solvers {

// Rounds `weight` [out, in] column by column, each time moving the columns that are left so as to
// make good the error of the output. GPTQ, arXiv 2210.17323; numerics.md (15) to (18).
//
//   hessian  float32 [in, in], of InputStatistics
//   drift    float32 [in, in], for options.correction > 0
//   outer    what scales are multiples of, which all blocks share and so is known before any is
//            rounded; what is not given is found by the ranges of `weight`
//   output_hessian  float32 [out, out], the mean of g gᵀ over tokens, g being the gradient of the
//            model's loss at this layer's output; rows are then rounded block after block, each time
//            moving those that are left, so that what reaches the model's output is least: (39)
//
// `target` has the codes of `weight`, but lies anywhere in their cells: nearest to the border where
// the choice was closest. It is what training should start from. A column that is clipped counts as
// one that was rounded by half a step.
//
// Columns that no input reaches are rounded to nearest. A Hessian that is not positive definite is
// damped ten times more, up to four times; then, as for one that is not finite, all columns are
// rounded to nearest and `warning` says so. Throws std::invalid_argument for shapes that do not
// agree, and for a weight that is not finite.
QAT_API RoundedWeight gptq(const at::Tensor& weight, const at::Tensor& hessian,
                           const QuantSpec& spec, int bits, const GptqOptions& options = {},
                           const std::optional<at::Tensor>& drift = std::nullopt,
                           const OuterParameters& outer = {},
                           const std::optional<at::Tensor>& output_hessian = std::nullopt);

}  // namespace solvers

}  // namespace qat
