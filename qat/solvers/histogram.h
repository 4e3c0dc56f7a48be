#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "qat/ops/api.h"

namespace qat {

// Counts of the values of a stream, in bins whose width is a power of two and whose borders are its
// multiples, so that zero is a border and no value is ever counted anew. The range grows by further
// bins; beyond kMostBins of them, neighbours are merged in pairs.
class QAT_API Histogram {
 public:
  static constexpr int64_t kMostBins = 8192;

  // Finite values, any shape and device, float32.
  void add(const at::Tensor& values);

  bool empty() const { return total_ == 0; }
  int64_t total() const { return total_; }
  double width() const { return width_; }
  // Bin k counts the values in [k, k + 1) * width(), for k = first() and up.
  int64_t first() const { return first_; }
  const std::vector<int64_t>& counts() const { return counts_; }

  // The middle of each bin, float64.
  std::vector<double> centres() const;
  // Counts of magnitudes: bin k counts those in [k, k + 1) * width, k = 0 and up, in at most `most`
  // bins, whose width is a multiple of width().
  std::vector<double> magnitudes(int64_t most, double* width) const;
  // The value below which the share `rank` (0 to 1) of all values lies, linear within a bin.
  double quantile(double rank) const;
  // The magnitude below which that share of all magnitudes lies.
  double magnitude_quantile(double rank) const;

 private:
  void merge_pairs();
  void cover(int64_t first, int64_t last);

  double width_ = 0.0;
  int64_t first_ = 0;
  int64_t total_ = 0;
  std::vector<int64_t> counts_;
};

}  // namespace qat
