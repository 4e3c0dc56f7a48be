#include "qat/nn/weight_cache.h"

#include <ATen/core/grad_mode.h>

#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/kept_memory.h"

namespace qat {

const char* name_of(CachePolicy policy) {
  switch (policy) {
    case CachePolicy::none:
      return "none";
    case CachePolicy::codes:
      return "codes";
    case CachePolicy::weights:
      return "weights";
  }
  return "";
}

CachePolicy parse_cache_policy(const std::string& name) {
  for (const auto policy : {CachePolicy::none, CachePolicy::codes, CachePolicy::weights})
    if (name == name_of(policy)) return policy;
  throw InvalidArgument("weight_cache must be none, codes or weights, but is " + name + ".");
}

WeightCache& WeightCache::operator=(const WeightCache& other) {
  clear();
  policy_ = other.policy_;
  return *this;
}

WeightCache::Stamp WeightCache::stamp_of(const std::optional<at::Tensor>& tensor) {
  if (!tensor || !tensor->defined()) return {};
  return {tensor->const_data_ptr(), static_cast<int64_t>(tensor->_version())};
}

std::vector<at::Tensor> WeightCache::get(const Quantizer& quantizer, const at::Tensor& weight,
                                         const std::optional<at::Tensor>& scale,
                                         const std::optional<at::Tensor>& zero_point,
                                         at::ScalarType dtype) {
  // Tensors made in inference mode have no version to watch.
  if (policy_ == CachePolicy::none || !quantizer.active() || weight.is_inference()) return {};
  // Floats have no packed codes: the rounded weight is kept instead.
  const bool as_codes = policy_ == CachePolicy::codes && quantizer.has_codes();
  const Key key{stamp_of(weight), stamp_of(scale), stamp_of(zero_point), quantizer.text(),
                as_codes ? at::kFloat : dtype};
  {
    const std::lock_guard lock(mutex_);
    if (key == key_ && !kept_.empty()) return kept_;
    kept_.clear();  // first, so that the new one can lie where the old one lay
  }
  // Without the lock: an operator may run Python, which may wait for a thread that waits here.
  const std::vector<at::Tensor> made = make(quantizer, weight, scale, zero_point, dtype, as_codes);
  const std::lock_guard lock(mutex_);
  key_ = key;
  return kept_ = made;
}

std::vector<at::Tensor> WeightCache::make(const Quantizer& quantizer, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& scale,
                                          const std::optional<at::Tensor>& zero_point,
                                          at::ScalarType dtype, bool as_codes) {
  const at::NoGradGuard no_grad;
  if (as_codes) return quantizer.encoded(weight, {scale, zero_point, {}});
  const Quantizer::Result result = quantizer(weight, {scale, zero_point, {}}, dtype);
  // What stays must not lie in the large buffer that brief results take turns on.
  at::Tensor values = result.values;
  if (values.is_cpu())
    values = kept_empty(values.sizes(), values.options(), Fit::tight).copy_(values);
  if (!result.scale.defined()) return {values};
  return {values, result.scale, result.zero_point};
}

void WeightCache::clear() {
  const std::lock_guard lock(mutex_);
  kept_.clear();
  key_ = Key();
}

int64_t WeightCache::bytes() const {
  const std::lock_guard lock(mutex_);
  int64_t bytes = 0;
  for (const at::Tensor& one : kept_) bytes += static_cast<int64_t>(one.nbytes());
  return bytes;
}

}  // namespace qat
