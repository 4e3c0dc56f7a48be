#include "qat/observer.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ops/checks.h"
#include "ops/choose_qparams.h"

namespace qat {

void MinMaxObserver::observe(const at::Tensor& x) {
  const at::Tensor seen = x.detach();
  const at::Tensor finite = seen.masked_select(at::isfinite(seen));
  ignored_ += seen.numel() - finite.numel();
  if (finite.numel() == 0) return;
  const auto [low, high] = at::aminmax(finite);
  const double batch_low = low.item<double>(), batch_high = high.item<double>();
  const bool first = empty();
  low_ = first ? batch_low : std::min(low_, batch_low);
  high_ = first ? batch_high : std::max(high_, batch_high);
}

std::tuple<at::Tensor, at::Tensor> MinMaxObserver::qparams(const QuantSpec& spec, int bits) const {
  const at::Tensor ends =
      empty() ? at::zeros({1, 2}) : at::tensor({low_, high_}).to(at::kFloat).view({1, 2});
  return choose_qparams(ends, {-1, -1}, bits, grid_name(spec.grid), "minmax", spec.scale_dtype);
}

}  // namespace qat
