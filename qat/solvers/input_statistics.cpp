#include "qat/solvers/input_statistics.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "qat/error.h"
#include "qat/solvers/full_precision.h"

namespace qat {
namespace {

at::Tensor as_tokens(const at::Tensor& x, int64_t features) {
  if (x.dim() == 0 || x.size(-1) != features)
    throw InvalidArgument("Inputs must have " + std::to_string(features) + " features, but have " +
                          std::to_string(x.dim() == 0 ? 0 : x.size(-1)) + ".");
  return x.detach().reshape({-1, features}).to(at::kFloat);
}

// Of a sum of products on the CPU only what is on and right of the diagonal is added up, in strips
// of so many rows; GPUs take one product.
constexpr int64_t kStrip = 128;

void add_products(const at::Tensor& sum, const at::Tensor& tokens) {
  const int64_t features = sum.size(0), strip = sum.is_cpu() ? kStrip : features;
  for (int64_t from = 0; from < features; from += strip) {
    const int64_t to = std::min(from + strip, features);
    sum.slice(0, from, to)
        .slice(1, from)
        .addmm_(tokens.slice(1, from, to).t(), tokens.slice(1, from));
  }
}

}  // namespace

InputStatistics::InputStatistics(int64_t features, bool drift) : features_(features) {
  products_ = at::zeros({features, features}, at::kFloat);
  if (drift) drift_ = at::zeros({features, features}, at::kFloat);
  magnitude_ = at::zeros({features}, at::kDouble);
  most_ = at::zeros({features}, at::kFloat);
}

void InputStatistics::add(const at::Tensor& x, const std::optional<at::Tensor>& original) {
  const at::NoGradGuard no_grad;
  const solvers::FullPrecision full;
  if (original.has_value() != drift_.defined())
    throw InvalidArgument(
        "The tokens of the float model must be given exactly when the drift is gathered.");
  at::Tensor tokens = as_tokens(x, features_);
  at::Tensor wanted = original ? as_tokens(*original, features_) : at::Tensor();
  if (tokens_ == 0 && products_.device() != tokens.device())
    for (at::Tensor* sum : {&products_, &drift_, &magnitude_, &most_})
      if (sum->defined()) *sum = sum->to(tokens.device());
  at::Tensor finite = at::isfinite(tokens).all(1);
  if (wanted.defined()) finite = finite.logical_and(at::isfinite(wanted).all(1));
  const int64_t kept = finite.sum().item<int64_t>();
  ignored_ += tokens.size(0) - kept;
  if (kept == 0) return;
  if (kept < tokens.size(0)) {
    tokens = tokens.index({finite});
    if (wanted.defined()) wanted = wanted.index({finite});
  }
  tokens_ += kept;
  add_products(products_, tokens);
  if (wanted.defined()) drift_.addmm_((wanted - tokens).t(), tokens);
  const at::Tensor magnitudes = tokens.abs();
  magnitude_.add_(magnitudes.sum(0, /*keepdim=*/false, at::kDouble));
  most_ = at::maximum(most_, magnitudes.amax(0));
}

at::Tensor InputStatistics::hessian() const {
  const double count = static_cast<double>(std::max<int64_t>(1, tokens_));
  // A product need not come out symmetric to the last bit, and of some sums there is only the upper
  // half; the solvers want it whole.
  return (products_.triu() + products_.triu(1).t()).div_(count);
}

std::optional<at::Tensor> InputStatistics::drift() const {
  if (!drift_.defined()) return std::nullopt;
  return drift_ / static_cast<double>(std::max<int64_t>(1, tokens_));
}

at::Tensor InputStatistics::mean_magnitude() const {
  return (magnitude_ / static_cast<double>(std::max<int64_t>(1, tokens_))).to(at::kFloat);
}

}  // namespace qat
