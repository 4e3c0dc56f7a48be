#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "qat/solvers/histogram.h"
#include "qat/spec.h"

namespace qat {

// The range of everything that passed, or as much of it as its spec's observer keeps; numerics.md
// (24) to (27). Elements that are not finite are ignored and counted.
class Observer {
 public:
  // That of a tensor-wide spec: its kind and settings.
  explicit Observer(const ObserverSpec& spec = {}) : spec_(spec) {}

  // Any shape and floating dtype.
  void observe(const at::Tensor& x);

  bool empty() const { return low_ > high_; }
  // Smallest and largest finite element, or their moving average.
  double low() const { return low_; }
  double high() const { return high_; }
  int64_t ignored() const { return ignored_; }
  // Goes on from a range that was observed before.
  void restore(double low, double high);
  // Forgets everything but its settings.
  void reset() { *this = Observer(spec_); }

  // Scale float32 [1, 1] and zero point int8 [1, 1] for a tensor-wide spec at `bits`. An observer
  // that saw nothing gives the parameters of a tensor of zeros.
  std::tuple<at::Tensor, at::Tensor> qparams(const QuantSpec& spec, int bits) const;

 private:
  std::tuple<at::Tensor, at::Tensor> find_qparams(const QuantSpec& spec, int bits) const;
  std::tuple<double, double> kept_range(const QuantSpec& spec, int bits) const;

  struct Found {
    QuantSpec spec;
    int bits;
    std::tuple<at::Tensor, at::Tensor> qparams;
  };

  ObserverSpec spec_;
  double low_ = 1.0;
  double high_ = -1.0;
  int64_t ignored_ = 0;
  Histogram histogram_;                 // for the kinds that search a range
  mutable std::optional<Found> found_;  // what was asked last, since a search takes a while
};

// The magnitude at which to clip for which the clipped distribution, rounded to 2^(bits - 1)
// levels, is nearest to the histogram's: least KL, the last on a tie. numerics.md (27).
double entropy_threshold(const Histogram& histogram, int bits);

}  // namespace qat
