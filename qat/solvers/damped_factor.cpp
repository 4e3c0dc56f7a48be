#include "qat/solvers/damped_factor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "qat/solvers/in_order.h"

namespace qat::solvers {
namespace {

// R, upper triangular, of H = R Rᵀ: a Cholesky factor taken from the far corner. `reversed` is H
// with rows and columns back to front, and is overwritten. Undefined when H is not positive
// definite.
at::Tensor factor_of(const at::Tensor& reversed) {
  // Seen transposed, which it equals, it lies as LAPACK wants it and is not rearranged.
  const auto [lower, info] = at::linalg_cholesky_ex(reversed.t());
  // What is not finite shows in a pivot.
  if (info.item<int>() != 0 || !at::isfinite(lower.diagonal()).all().item<bool>()) return {};
  return at::flip(lower, {0, 1});
}

}  // namespace

bool all_finite(const at::Tensor& x) {
  // One pass as a rule: a sum is not finite where one of its terms is not.
  return std::isfinite(x.sum().item<double>()) || at::isfinite(x).all().item<bool>();
}

Factor damped_factor(const at::Tensor& hessian, const at::Tensor& order, double damping,
                     const std::string& named, const std::string& otherwise) {
  if (!all_finite(hessian))
    return {at::eye(hessian.size(0), hessian.options()), named + " is not finite, so " + otherwise};
  const at::Tensor reversed = square_in_order(hessian, at::flip(order, {0}));
  const at::Tensor undamped = reversed.diagonal().clone(), dead = undamped <= 0;
  const double mean = undamped.mean().item<double>();
  for (int attempt = 0; attempt < 5; ++attempt) {
    reversed.diagonal().copy_((undamped + damping * mean).masked_fill_(dead, 1.0));
    const at::Tensor upper = factor_of(reversed);
    if (upper.defined())
      return {upper, attempt == 0 ? ""
                                  : named + " is not positive definite, so damping was raised to " +
                                        std::to_string(damping)};
    damping = std::max(damping, 1e-3) * 10.0;
  }
  return {at::flip(undamped, {0}).clamp_min(1e-12).sqrt().diag(),
          named + " is not positive definite, so " + otherwise};
}

}  // namespace qat::solvers
