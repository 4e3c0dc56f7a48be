#include "qat/solvers/histogram.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

namespace qat {
namespace {

// Bins that the first batch is spread over, at least half of them.
constexpr int64_t kFirstBins = 4096;

int64_t bin_of(double value, double width) {
  return static_cast<int64_t>(std::floor(value / width));
}

// Halves towards minus infinity, for the index of a bin of twice the width.
int64_t halved(int64_t index) { return index >> 1; }

double interpolated(const std::vector<double>& counts, double first, double width, double rank) {
  double total = 0.0;
  for (const double count : counts) total += count;
  const double wanted = rank * total;
  double below = 0.0;
  for (size_t bin = 0; bin < counts.size(); ++bin) {
    if (below + counts[bin] >= wanted && counts[bin] > 0.0)
      return (first + static_cast<double>(bin) + (wanted - below) / counts[bin]) * width;
    below += counts[bin];
  }
  return (first + static_cast<double>(counts.size())) * width;
}

}  // namespace

void Histogram::add(const at::Tensor& values) {
  if (values.numel() == 0) return;
  const at::Tensor flat = values.detach().reshape(-1).to(at::kDouble);
  const auto [low_tensor, high_tensor] = at::aminmax(flat);
  const double low = low_tensor.item<double>(), high = high_tensor.item<double>();
  if (width_ == 0.0) {
    // A batch of one value says nothing of the scale of the next but its own size.
    const double span = std::max({high - low, std::abs(high) / 64.0, std::abs(low) / 64.0, 1e-30});
    width_ = std::exp2(std::ceil(std::log2(span / static_cast<double>(kFirstBins))));
    first_ = bin_of(low, width_);
  }
  const double least = counts_.empty() ? low : std::min(low, static_cast<double>(first_) * width_);
  while (
      (std::max(high, static_cast<double>(first_ + static_cast<int64_t>(counts_.size())) * width_) -
       least) /
          width_ >
      static_cast<double>(kMostBins - 2))
    merge_pairs();
  cover(bin_of(low, width_), bin_of(high, width_));
  const at::Tensor bins = flat.div(width_).floor_().to(at::kLong).sub_(first_);
  const at::Tensor counted =
      at::bincount(bins, {}, static_cast<int64_t>(counts_.size())).to(at::kCPU).contiguous();
  const int64_t* found = counted.const_data_ptr<int64_t>();
  for (size_t bin = 0; bin < counts_.size(); ++bin) counts_[bin] += found[bin];
  total_ += flat.numel();
}

void Histogram::merge_pairs() {
  if (first_ % 2 != 0) {
    counts_.insert(counts_.begin(), 0);
    --first_;
  }
  if (counts_.size() % 2 != 0) counts_.push_back(0);
  for (size_t bin = 0; bin < counts_.size() / 2; ++bin)
    counts_[bin] = counts_[2 * bin] + counts_[2 * bin + 1];
  counts_.resize(counts_.size() / 2);
  first_ = halved(first_);
  width_ *= 2.0;
}

void Histogram::cover(int64_t first, int64_t last) {
  if (counts_.empty()) first_ = first;
  if (first < first_) {
    counts_.insert(counts_.begin(), static_cast<size_t>(first_ - first), 0);
    first_ = first;
  }
  const auto needed = static_cast<size_t>(last - first_ + 1);
  if (needed > counts_.size()) counts_.resize(needed, 0);
}

std::vector<double> Histogram::centres() const {
  std::vector<double> middle(counts_.size());
  for (size_t bin = 0; bin < middle.size(); ++bin)
    middle[bin] = (static_cast<double>(first_) + static_cast<double>(bin) + 0.5) * width_;
  return middle;
}

std::vector<double> Histogram::magnitudes(int64_t most, double* width) const {
  const int64_t last = first_ + static_cast<int64_t>(counts_.size());
  const int64_t reach = std::max(last, -first_);
  const int64_t share = std::max<int64_t>(1, (reach + most - 1) / most);
  std::vector<double> folded(static_cast<size_t>((reach + share - 1) / share), 0.0);
  for (int64_t bin = first_; bin < last; ++bin) {
    const int64_t magnitude = bin >= 0 ? bin : -bin - 1;
    folded[static_cast<size_t>(magnitude / share)] +=
        static_cast<double>(counts_[static_cast<size_t>(bin - first_)]);
  }
  *width = width_ * static_cast<double>(share);
  return folded;
}

double Histogram::quantile(double rank) const {
  return interpolated({counts_.begin(), counts_.end()}, static_cast<double>(first_), width_, rank);
}

double Histogram::magnitude_quantile(double rank) const {
  double width = 0.0;
  const std::vector<double> folded = magnitudes(kMostBins, &width);
  return interpolated(folded, 0.0, width, rank);
}

}  // namespace qat
