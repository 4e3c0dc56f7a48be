#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace qat::solvers {

// R, upper triangular, of H + λI = R Rᵀ; numerics.md (15).
struct Factor {
  at::Tensor upper;
  std::string warning;  // what had to be done differently, a sentence's end; empty as a rule
};

// Of the Hessian float32 [in, in] with rows and columns in `order`, int64 [in]. Rows that are zero
// get a 1 on the diagonal. Damps ten times more where H is not positive definite, up to four times;
// then, as for one that is not finite, gives a diagonal, under which nothing is made good: what that
// means for `named` is the warning's end, `otherwise`.
Factor damped_factor(const at::Tensor& hessian, const at::Tensor& order, double damping,
                     const std::string& named = "its Hessian",
                     const std::string& otherwise = "it was rounded to nearest");

// Whether all elements are finite.
bool all_finite(const at::Tensor& x);

}  // namespace qat::solvers
