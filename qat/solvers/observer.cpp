#include "qat/solvers/observer.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/solvers/scale_search.h"

namespace qat {
namespace {

// Magnitudes are looked at in at most this many bins, as TensorRT does.
constexpr int64_t kEntropyBins = 2048;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// {-smallest, largest} of the elements where `finite`, float64 [2]; -infinity where there is none.
at::Tensor ends_of(const at::Tensor& x, const at::Tensor& finite) {
  return at::stack({at::where(finite, x, kInfinity).amin().neg(),
                    at::where(finite, x, -kInfinity).amax()})
      .to(at::kDouble);
}

// The ends of a range that goes on with a batch, (24). Both are -infinity when empty.
at::Tensor joined(const at::Tensor& before, const at::Tensor& batch, const ObserverSpec& spec) {
  if (spec.kind != ObserverKind::moving_average) return at::maximum(before, batch);
  // Two operators, since one of them would contract the product and the sum on some machines.
  const at::Tensor exact = before + (batch - before).mul_(spec.averaging_constant);
  // As states keep it, so that one which is restored goes on to the same bits.
  const at::Tensor moved = exact.to(at::kFloat).to(at::kDouble);
  return at::where(before.isinf(), batch, at::where(batch.isinf(), before, moved));
}

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

double solvers::entropy_threshold(const Histogram& histogram, int bits) {
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

Observer::State Observer::State::copy() const {
  State copied = *this;
  for (at::Tensor* one : {&copied.ends, &copied.ignored})
    if (one->defined()) *one = one->clone();
  return copied;
}

Observer::Range Observer::State::on_host() const {
  if (!ends.defined()) return {};
  if (!host) {
    const at::Tensor read = ends.to(at::kCPU);
    const double* end = read.const_data_ptr<double>();
    host = std::isinf(end[0]) ? Range() : Range{-end[0], end[1]};
  }
  return *host;
}

at::Tensor Observer::State::ends_or_zeros() const {
  return ends.defined() ? at::nan_to_num(ends, 0.0, 0.0, 0.0) : at::zeros({2}, at::kDouble);
}

Observer::Observer(const ObserverSpec& spec) : state_(spec) {}

Observer::Observer(const Observer& other) : state_(other.state_.spec) { *this = other; }

Observer& Observer::operator=(const Observer& other) {
  if (this == &other) return *this;
  State copied = [&] {
    const std::lock_guard lock(other.mutex_);
    return other.state_.copy();
  }();
  const std::lock_guard lock(mutex_);
  state_ = std::move(copied);
  return *this;
}

void Observer::observe(const at::Tensor& x) {
  if (x.numel() == 0) return;
  at::Tensor seen = x.detach();
  if (seen.scalar_type() == at::kDouble) seen = seen.to(at::kFloat);
  const at::Tensor finite = seen.abs() < kInfinity;
  const at::Tensor batch = ends_of(seen, finite);
  const at::Tensor ignored = at::rsub(finite.sum(), seen.numel());
  const std::lock_guard lock(mutex_);
  state_.found.reset(), state_.host.reset();
  if (!state_.ends.defined()) {
    state_.ends = batch, state_.ignored = ignored;
  } else {
    state_.ends = state_.ends.to(batch.device());
    state_.ignored = state_.ignored.to(batch.device());
    // In place: the range has one address, whatever was captured of it.
    state_.ends.copy_(joined(state_.ends, batch, state_.spec));
    state_.ignored.add_(ignored);
  }
  if (!follows(state_.spec.kind)) state_.histogram.add(seen.masked_select(finite).to(at::kFloat));
}

bool Observer::observed() const {
  const std::lock_guard lock(mutex_);
  return state_.ends.defined();
}

bool Observer::empty() const { return low() > high(); }

double Observer::low() const {
  const std::lock_guard lock(mutex_);
  return state_.on_host().low;
}

double Observer::high() const {
  const std::lock_guard lock(mutex_);
  return state_.on_host().high;
}

std::tuple<at::Tensor, at::Tensor> Observer::range() const {
  const std::lock_guard lock(mutex_);
  const at::Tensor ends = state_.ends_or_zeros();
  return {ends.select(0, 0).neg(), ends.select(0, 1)};
}

int64_t Observer::ignored() const {
  const std::lock_guard lock(mutex_);
  return state_.ignored.defined() ? state_.ignored.item<int64_t>() : 0;
}

void Observer::restore(double low, double high) {
  restore(at::scalar_tensor(low, at::kDouble), at::scalar_tensor(high, at::kDouble));
}

void Observer::restore(const at::Tensor& low, const at::Tensor& high) {
  const at::Tensor ends =
      at::cat({low.detach().reshape({1}).neg(), high.detach().reshape({1})}).to(at::kDouble);
  const std::lock_guard lock(mutex_);
  state_.found.reset(), state_.host.reset();
  state_.ends = ends;
  if (!state_.ignored.defined()) state_.ignored = at::zeros({}, ends.options().dtype(at::kLong));
}

void Observer::reset() {
  const std::lock_guard lock(mutex_);
  state_ = State(state_.spec);
}

Observer::Range Observer::State::kept_range(const QuantSpec& kept, int bits) const {
  const auto [low, high] = on_host();
  if (spec.kind == ObserverKind::percentile) {
    const double rank = spec.percentile / 100.0;
    if (!kept.symmetric())
      return {std::max(low, histogram.quantile(1.0 - rank)),
              std::min(high, histogram.quantile(rank))};
    const double magnitude = histogram.magnitude_quantile(rank);
    return {std::max(low, -magnitude), std::min(high, magnitude)};
  }
  const double magnitude = solvers::entropy_threshold(histogram, bits);
  return {std::max(low, -magnitude), std::min(high, magnitude)};
}

std::tuple<at::Tensor, at::Tensor> Observer::qparams(const QuantSpec& spec, int bits) const {
  const std::lock_guard lock(mutex_);
  auto& found = state_.found;
  if (!found || found->bits != bits || !(found->spec == spec))
    found = Found{spec, bits, state_.find_qparams(spec, bits)};
  return found->qparams;
}

std::tuple<at::Tensor, at::Tensor> Observer::State::find_qparams(const QuantSpec& wanted,
                                                                 int bits) const {
  const auto choose = [&](const at::Tensor& values, ScaleSearch search,
                          const std::optional<at::Tensor>& importance = {}) {
    Quantizer quantizer = quantizer_of(wanted, bits, Quantizer::Mode::minmax);
    quantizer.block = {-1, -1};
    if (wanted.scale.has_outer())
      return std::tuple(std::get<0>(choose_outer_scales(values, quantizer.text())),
                        at::zeros({1, 1}, values.options().dtype(at::kChar)));
    return choose_qparams(values, quantizer.text(), name_of(search), importance);
  };
  if (histogram.empty()) {
    const at::Tensor range = ends_or_zeros();
    const at::Tensor low = range.slice(0, 0, 1).neg(), high = range.slice(0, 1, 2);
    return choose(at::cat({low, high}).to(at::kFloat).view({1, 2}), ScaleSearch::minmax);
  }
  if (spec.kind == ObserverKind::mse) {
    // Each bin stands for the values in it; the outer ones for the ends.
    std::vector<double> values = histogram.centres();
    values.front() = on_host().low, values.back() = on_host().high;
    const auto& counts = histogram.counts();
    return choose(row_of(values), ScaleSearch::mse,
                  row_of({counts.begin(), counts.end()}).view(-1));
  }
  const auto [low, high] = kept_range(wanted, bits);
  return choose(row_of({low, high}), ScaleSearch::minmax);
}

}  // namespace qat
