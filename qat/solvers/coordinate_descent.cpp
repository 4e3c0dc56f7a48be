#include "qat/solvers/coordinate_descent.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "qat/ops/quantize_with_feedback.h"

namespace qat::solvers {
namespace {

// Columns between two products with all others.
constexpr int64_t kColumnsTogether = 128;

}  // namespace

CoordinateDescent::CoordinateDescent(const at::Tensor& hessian,
                                     const std::optional<at::Tensor>& row_hessian, int64_t together,
                                     std::string quantizer, const at::Tensor& scale,
                                     const at::Tensor& zero_point)
    : hessian_(hessian),
      row_hessian_(row_hessian),
      together_(row_hessian ? together : scale.size(0)),
      quantizer_(std::move(quantizer)),
      scale_(scale),
      zero_point_(zero_point) {
  at::Tensor shares = hessian / hessian.diagonal();
  shares.diagonal().zero_();
  for (int64_t from = 0; from < shares.size(1); from += kColumnsTogether) {
    const int64_t to = std::min(from + kColumnsTogether, shares.size(1));
    at::Tensor others = shares.slice(1, from, to).clone();
    own_.push_back(others.slice(0, from, to).clone());
    others.slice(0, from, to).tril_(-1);
    others_.push_back(others);
  }
}

bool CoordinateDescent::pass(const at::Tensor& weight, Assignment& found) const {
  const at::Tensor before = found.codes.clone();
  for (int64_t from = 0; from < weight.size(0); from += together_)
    move(weight, found, from, std::min(from + together_, weight.size(0)));
  return !found.codes.equal(before);
}

// Rows [from, to) at once, or in halves where they would undo each other. (39a)
void CoordinateDescent::move(const at::Tensor& weight, Assignment& found, int64_t from,
                             int64_t to) const {
  const auto here = [&](const at::Tensor& matrix) { return matrix.slice(0, from, to); };
  const at::Tensor error = here(found.error), rounded = here(weight) - error;
  const at::Tensor own = row_hessian_ ? here(*row_hessian_).slice(1, from, to) : at::Tensor();
  const at::Tensor pull = row_hessian_ ? at::mm(here(*row_hessian_), found.error) : error;
  const Rows rows{from, to, here(found.codes), rounded};
  const Rows best = moved(rows, row_hessian_ ? pull / own.diagonal().unsqueeze(1) : pull);
  if (row_hessian_ && !lowers(own, pull, best.rounded - rounded)) {
    if (to - from == 1) return;
    const int64_t middle = from + (to - from) / 2;
    move(weight, found, from, middle);
    move(weight, found, middle, to);
    return;
  }
  here(found.codes).copy_(best.codes);
  here(found.residual).copy_(best.residual);
  error.copy_(here(weight) - best.rounded);
}

// Whether the error of the output does not grow when rows that answer for each other by `own` move.
bool CoordinateDescent::lowers(const at::Tensor& own, const at::Tensor& pull,
                               const at::Tensor& moves) const {
  const at::Tensor change = at::mm(at::mm(own, moves) - 2.0 * pull, hessian_) * moves;
  return change.sum(at::kDouble).item<double>() <= 0.0;
}

// Each row for itself, towards what it misses, column by column.
CoordinateDescent::Rows CoordinateDescent::moved(const Rows& rows, const at::Tensor& missed) const {
  const at::Tensor wanted = rows.rounded + missed;
  at::Tensor error = missed.clone(), codes = at::empty_like(rows.codes),
             residual = at::empty_like(missed);
  int64_t from = 0;
  for (size_t i = 0; i < own_.size(); ++i) {
    const int64_t to = from + own_[i].size(1);
    const auto here = [&](const at::Tensor& matrix) { return matrix.slice(1, from, to); };
    const auto of_rows = [&](const at::Tensor& matrix) {
      return here(matrix).slice(0, rows.from, rows.to).contiguous();
    };
    const auto [code, missing, left] =
        quantize_with_feedback(here(wanted), quantizer_, at::mm(error, others_[i]), own_[i],
                               of_rows(scale_), of_rows(zero_point_));
    here(codes).copy_(code);
    here(error).copy_(missing);
    here(residual).copy_(left);
    from = to;
  }
  return {rows.from, rows.to, codes, wanted - error, residual};
}

}  // namespace qat::solvers
