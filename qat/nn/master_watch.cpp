#include "qat/nn/master_watch.h"

#include <ATen/ops/allclose.h>

#include <algorithm>

namespace qat {
namespace {

at::Tensor sample_of(const at::Tensor& master) {
  constexpr int64_t kSample = 256;
  const int64_t count = master.numel();
  return master.detach().reshape({-1}).slice(0, 0, count,
                                             std::max<int64_t>(1, count / kSample) | 1);
}

}  // namespace

void MasterWatch::rounded(const Stamp& now, const at::Tensor& master) {
  // Between a backward and this an optimizer has stepped, as a rule.
  if (gradient_came_ && now.master_version != stamp_.master_version) versions_tell_ = true;
  stamp_ = now;
  gradient_came_ = false;
  sample_ = versions_tell_ ? at::Tensor() : sample_of(master).clone();
}

bool MasterWatch::changed(const Stamp& now, const at::Tensor& master, bool training) const {
  if (!(now == stamp_)) return true;
  if (versions_tell_ || !master.requires_grad() || !(gradient_came_ || training)) return false;
  // NaN has not changed.
  return !at::allclose(sample_of(master), sample_, 0.0, 0.0, /*equal_nan=*/true);
}

int64_t version_of(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_inference() ? static_cast<int64_t>(tensor._version()) : 0;
}

}  // namespace qat
