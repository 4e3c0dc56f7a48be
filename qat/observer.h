#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "qat/spec.h"

namespace qat {

// The range of everything seen so far: the union of the batches' smallest and largest finite
// elements. Elements that are not finite are ignored and counted.
class MinMaxObserver {
 public:
  void observe(const at::Tensor& x);
  bool empty() const { return low_ > high_; }
  double low() const { return low_; }
  double high() const { return high_; }
  int64_t ignored() const { return ignored_; }
  void reset() { *this = MinMaxObserver(); }

  // Scale float32 [1, 1] and zero point int8 [1, 1] for a tensor-wide spec at `bits`. An observer
  // that saw nothing gives the parameters of a tensor of zeros.
  std::tuple<at::Tensor, at::Tensor> qparams(const QuantSpec& spec, int bits) const;

 private:
  double low_ = 1.0;
  double high_ = -1.0;
  int64_t ignored_ = 0;
};

}  // namespace qat
