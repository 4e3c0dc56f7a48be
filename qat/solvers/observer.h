#pragma once

#include <ATen/core/Tensor.h>

#include <mutex>
#include <optional>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/solvers/histogram.h"
#include "qat/spec.h"

namespace qat {

// The range of everything that passed, or as much of it as its spec's observer keeps; numerics.md
// (24) to (27). Elements that are not finite are ignored and counted.
//
// The range stays on the device of what is observed. For the kinds that follow a range (spec.h),
// observe(), range() and qparams() do not wait for that device; what returns a number does. Threads
// may share an observer; a copy has a range of its own.
class QAT_API Observer {
 public:
  // That of a tensor-wide spec: its kind and settings.
  explicit Observer(const ObserverSpec& spec = {});
  Observer(const Observer& other);
  Observer& operator=(const Observer& other);

  // Any shape and floating dtype.
  void observe(const at::Tensor& x);

  // Whether there was an element, finite or not, or a range to go on from.
  bool observed() const;
  // Whether no element was finite.
  bool empty() const;
  // Smallest and largest finite element, or their moving average; 1 and -1 when empty.
  double low() const;
  double high() const;
  // The same on the device, float64 []; zeros when empty.
  std::tuple<at::Tensor, at::Tensor> range() const;
  int64_t ignored() const;
  // Goes on from a range that was observed before; tensors have one element each.
  void restore(double low, double high);
  void restore(const at::Tensor& low, const at::Tensor& high);
  // Forgets everything but its settings.
  void reset();

  // Scale float32 [1, 1] and zero point int8 [1, 1] for a tensor-wide spec at `bits`. An observer
  // that saw nothing gives the parameters of a tensor of zeros.
  std::tuple<at::Tensor, at::Tensor> qparams(const QuantSpec& spec, int bits) const;

 private:
  struct Range {
    double low = 1.0, high = -1.0;
  };
  struct Found {
    QuantSpec spec;
    int bits;
    std::tuple<at::Tensor, at::Tensor> qparams;
  };
  struct State {
    explicit State(const ObserverSpec& spec) : spec(spec) {}
    // With tensors of its own.
    State copy() const;
    Range on_host() const;
    // float64 [2], zeros when empty: {-low, high}.
    at::Tensor ends_or_zeros() const;
    Range kept_range(const QuantSpec& spec, int bits) const;
    std::tuple<at::Tensor, at::Tensor> find_qparams(const QuantSpec& spec, int bits) const;

    ObserverSpec spec;
    at::Tensor ends;      // float64 [2], {-low, high}, -infinity when empty; undefined at first
    at::Tensor ignored;   // int64 []; undefined at first
    Histogram histogram;  // for the kinds that search a range
    std::optional<Found> found;         // what was asked last, since a search takes a while
    mutable std::optional<Range> host;  // `ends`, once they were read
  };

  mutable std::mutex mutex_;
  mutable State state_;
};

namespace solvers {
// The magnitude at which to clip for which the clipped distribution, rounded to 2^(bits - 1)
// levels, is nearest to the histogram's: least KL, the last on a tie. numerics.md (27).
QAT_API double entropy_threshold(const Histogram& histogram, int bits);
}  // namespace solvers

}  // namespace qat
