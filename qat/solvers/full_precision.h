#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace qat::solvers {

// While it lives, products of float32 matrices are those of float32: autocast is off on this
// thread, and TF32 and bfloat16 products are off in the process, as they were before once the last
// of these is gone. Solvers want it: a Hessian of TF32 products is not positive definite.
class FullPrecision {
 public:
  FullPrecision();
  ~FullPrecision();
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  c10::impl::ExcludeDispatchKeyGuard no_autocast_;
};

}  // namespace qat::solvers
