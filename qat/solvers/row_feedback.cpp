#include "qat/solvers/row_feedback.h"

#include <ATen/ATen.h>

namespace qat::solvers {
namespace {

// The fewer, the nearer to rows one after the other, and the more passes over the columns.
constexpr int64_t kRowsTogether = 8;

}  // namespace

RowFeedback::RowFeedback(const at::Tensor& hessian, double damping, int64_t together)
    : order_(together == 1 ? at::argsort(hessian.diagonal(), /*stable=*/true, 0, true)
                           : at::arange(hessian.size(0), hessian.options().dtype(at::kLong))),
      step_((kRowsTogether + together - 1) / together * together),
      factor_(damped_factor(hessian, order_, damping, "its output's Hessian",
                            "its rows do not answer for each other")) {}

at::Tensor RowFeedback::hessian() const { return at::mm(factor_.upper, factor_.upper.t()); }

at::Tensor RowFeedback::asked(const at::Tensor& missed, int64_t from, int64_t to) const {
  const at::Tensor before = factor_.upper.slice(0, 0, from).slice(1, from, to);
  const at::Tensor own = factor_.upper.slice(0, from, to).slice(1, from, to);
  return at::linalg_solve_triangular(own.t(), at::mm(before.t(), missed.slice(0, 0, from)),
                                     /*upper=*/false);
}

}  // namespace qat::solvers
