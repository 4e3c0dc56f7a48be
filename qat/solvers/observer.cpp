#include "qat/solvers/observer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"

namespace qat {
namespace {

// Magnitudes are looked at in at most this many bins, as TensorRT does.
constexpr int64_t kEntropyBins = 2048;

at::Tensor row_of(const std::vector<double>& values) {
  return at::tensor(values).to(at::kFloat).view({1, static_cast<int64_t>(values.size())});
}

// KL(P || Q) where P is the first `kept` bins with all that lies beyond added to the last, and Q
// the same bins without it, merged into `levels` chunks and spread evenly over the bins that count
// something.
double clipped_divergence(const std::vector<double>& bins, size_t kept, size_t levels,
                          double beyond) {
  double total_q = 0.0;
  for (size_t bin = 0; bin < kept; ++bin) total_q += bins[bin];
  const double total_p = total_q + beyond;
  if (total_q <= 0.0) return std::numeric_limits<double>::infinity();
  double divergence = 0.0;
  for (size_t level = 0; level < levels; ++level) {
    const size_t from = level * kept / levels, to = (level + 1) * kept / levels;
    double mass = 0.0;
    size_t filled = 0;
    for (size_t bin = from; bin < to; ++bin) mass += bins[bin], filled += bins[bin] > 0.0;
    for (size_t bin = from; bin < to; ++bin) {
      const double p = (bins[bin] + (bin + 1 == kept ? beyond : 0.0)) / total_p;
      if (p <= 0.0) continue;
      const double q = bins[bin] > 0.0 ? mass / static_cast<double>(filled) / total_q : 0.0;
      divergence += p * std::log(p / std::max(q, 1e-12));
    }
  }
  return divergence;
}

}  // namespace

double entropy_threshold(const Histogram& histogram, int bits) {
  double width = 0.0;
  std::vector<double> bins = histogram.magnitudes(kEntropyBins, &width);
  if (bins.size() > 1) bins[0] = bins[1];  // a spike at zero, as after a ReLU, would outweigh all
  const auto levels = static_cast<size_t>(1) << (bits - 1);
  double beyond = 0.0;
  for (size_t bin = levels; bin < bins.size(); ++bin) beyond += bins[bin];
  double least = std::numeric_limits<double>::infinity();
  size_t best = bins.size();
  for (size_t kept = levels; kept <= bins.size(); ++kept) {
    const double divergence = clipped_divergence(bins, kept, levels, beyond);
    if (divergence <= least) least = divergence, best = kept;
    if (kept < bins.size()) beyond -= bins[kept];
  }
  return static_cast<double>(best) * width;
}

void Observer::observe(const at::Tensor& x) {
  found_.reset();
  const at::Tensor seen = x.detach();
  const at::Tensor finite = seen.masked_select(at::isfinite(seen)).to(at::kFloat);
  ignored_ += seen.numel() - finite.numel();
  if (finite.numel() == 0) return;
  const auto [low, high] = at::aminmax(finite);
  const double batch_low = low.item<double>(), batch_high = high.item<double>();
  if (empty()) {
    low_ = batch_low, high_ = batch_high;
  } else if (spec_.kind == ObserverKind::moving_average) {
    low_ += spec_.averaging_constant * (batch_low - low_);
    high_ += spec_.averaging_constant * (batch_high - high_);
  } else {
    low_ = std::min(low_, batch_low), high_ = std::max(high_, batch_high);
  }
  if (!follows(spec_.kind)) histogram_.add(finite);
}

void Observer::restore(double low, double high) {
  found_.reset();
  low_ = low, high_ = high;
}

std::tuple<double, double> Observer::kept_range(const QuantSpec& spec, int bits) const {
  if (spec_.kind == ObserverKind::percentile && !histogram_.empty()) {
    const double rank = spec_.percentile / 100.0;
    if (!spec.symmetric())
      return {std::max(low_, histogram_.quantile(1.0 - rank)),
              std::min(high_, histogram_.quantile(rank))};
    const double magnitude = histogram_.magnitude_quantile(rank);
    return {std::max(low_, -magnitude), std::min(high_, magnitude)};
  }
  if (spec_.kind == ObserverKind::entropy && !histogram_.empty()) {
    const double magnitude = entropy_threshold(histogram_, bits);
    return {std::max(low_, -magnitude), std::min(high_, magnitude)};
  }
  return {low_, high_};
}

std::tuple<at::Tensor, at::Tensor> Observer::qparams(const QuantSpec& spec, int bits) const {
  if (!found_ || found_->bits != bits || !(found_->spec == spec))
    found_ = Found{spec, bits, find_qparams(spec, bits)};
  return found_->qparams;
}

std::tuple<at::Tensor, at::Tensor> Observer::find_qparams(const QuantSpec& spec, int bits) const {
  const auto choose = [&](const at::Tensor& values, const char* method,
                          const std::optional<at::Tensor>& importance = {}) {
    Quantizer quantizer = quantizer_of(spec, bits, Quantizer::Mode::minmax);
    quantizer.block = {-1, -1};
    return choose_qparams(values, quantizer.text(), method, importance);
  };
  if (empty()) return choose(at::zeros({1, 2}), "minmax");
  if (spec_.kind == ObserverKind::mse && !histogram_.empty()) {
    // Each bin stands for the values in it; the outer ones for the ends.
    std::vector<double> values = histogram_.centres();
    values.front() = low_, values.back() = high_;
    const auto& counts = histogram_.counts();
    return choose(row_of(values), "mse", row_of({counts.begin(), counts.end()}).view(-1));
  }
  const auto [low, high] = kept_range(spec, bits);
  return choose(row_of({low, high}), "minmax");
}

}  // namespace qat
