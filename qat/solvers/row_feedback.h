#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "qat/solvers/damped_factor.h"

namespace qat::solvers {

// What the rows of a weight that were rounded ask of those that were not, since a model does not
// tell their errors apart: numerics.md (39). Rows are rounded block after block, those that matter
// most first, and those of one block do not see each other.
class RowFeedback {
 public:
  // `hessian`: float32 [rows, rows], finite, of a layer's output (gptq.h). `together`: rows that
  // share a scale, which stay as they stand.
  RowFeedback(const at::Tensor& hessian, double damping, int64_t together);

  // In which order rows are rounded, int64 [rows]. All that follows is in it.
  const at::Tensor& order() const { return order_; }

  // Rows in a block.
  int64_t step() const { return step_; }

  // The Hessian with what it was damped by, float32 [rows, rows].
  at::Tensor hessian() const;

  // What had to be done differently, a sentence's end; empty as a rule.
  const std::string& warning() const { return factor_.warning; }

  // By how much rows [from, to) are moved, float32 [to - from, cols]. `missed`: float32 [rows, cols],
  // the weight less what it was rounded to, of which the rows before `from` are read.
  at::Tensor asked(const at::Tensor& missed, int64_t from, int64_t to) const;

 private:
  at::Tensor order_;
  int64_t step_;
  Factor factor_;
};

}  // namespace qat::solvers
