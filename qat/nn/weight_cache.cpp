#include "qat/nn/weight_cache.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

// Elements of a weight that several threads would gain little by sharing.
constexpr int64_t kSmall = int64_t{1} << 18;

// Whether a thread other than this one may round it: Python's modes and subclasses of tensors are
// known to this one alone.
bool is_for_one_thread(const at::Tensor& weight) {
  return weight.is_cpu() && weight.numel() <= kSmall &&
         !weight.key_set().has(c10::DispatchKey::Python) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

}  // namespace

const NameTable<CachePolicy>& cache_policies() {
  static const NameTable<CachePolicy> names("weight_cache", {{CachePolicy::automatic, "auto"},
                                                             {CachePolicy::none, "none"},
                                                             {CachePolicy::codes, "codes"},
                                                             {CachePolicy::weights, "weights"}});
  return names;
}

const char* name_of(CachePolicy policy) { return cache_policies().name_of(policy); }

CachePolicy parse_cache_policy(const std::string& name) { return cache_policies().parse(name); }

WeightCache& WeightCache::operator=(const WeightCache& other) {
  clear();
  policy_ = other.policy_;
  return *this;
}

WeightCache::Stamp WeightCache::stamp_of(const std::optional<at::Tensor>& tensor) {
  if (!tensor || !tensor->defined()) return {};
  return {tensor->const_data_ptr(), static_cast<int64_t>(tensor->_version())};
}

bool WeightCache::Key::operator==(const Key& other) const {
  return weight == other.weight && scale == other.scale && zero_point == other.zero_point &&
         outer_scale == other.outer_scale && quantizer == other.quantizer && dtype == other.dtype;
}

std::vector<at::Tensor> WeightCache::get(const Quantizer& quantizer, const at::Tensor& weight,
                                         const Quantizer::Parameters& parameters,
                                         at::ScalarType dtype) {
  {
    const std::lock_guard lock(mutex_);
    dtype_ = dtype;
  }
  // Tensors made in inference mode have no version to watch.
  const bool keeps = policy_ == CachePolicy::codes || policy_ == CachePolicy::weights;
  if (!keeps || !quantizer.active() || weight.is_inference()) return {};
  // Floats have no packed codes: the rounded weight is kept instead.
  const bool as_codes = policy_ == CachePolicy::codes && quantizer.has_codes();
  const Key key{stamp_of(weight),
                stamp_of(parameters.scale),
                stamp_of(parameters.zero_point),
                stamp_of(parameters.outer_scale),
                parameters.outer_scale,
                quantizer.text(),
                as_codes ? at::kFloat : dtype};
  {
    const std::lock_guard lock(mutex_);
    if (key == key_ && !kept_.empty()) return kept_;
    kept_.clear();  // first, so that the new one can lie where the old one lay
  }
  // Without the lock: an operator may run Python, which may wait for a thread that waits here.
  const std::vector<at::Tensor> made = make(quantizer, weight, parameters, dtype, as_codes);
  const std::lock_guard lock(mutex_);
  key_ = key;
  ++version_;
  return kept_ = made;
}

std::vector<at::Tensor> WeightCache::make(const Quantizer& quantizer, const at::Tensor& weight,
                                          const Quantizer::Parameters& parameters,
                                          at::ScalarType dtype, bool as_codes) {
  const at::NoGradGuard no_grad;
  if (as_codes) return quantizer.encoded(weight, parameters);
  const Quantizer::Result result = quantizer(weight, parameters, dtype);
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

std::optional<at::ScalarType> WeightCache::dtype() const {
  const std::lock_guard lock(mutex_);
  return dtype_;
}

int64_t WeightCache::version() const {
  const std::lock_guard lock(mutex_);
  return version_;
}

void fill(const std::vector<CachedWeight>& weights) {
  const auto ask = [](const CachedWeight& one) {
    if (const auto dtype = one.cache->dtype())
      one.cache->get(one.quantizer, one.weight, one.parameters, *dtype);
  };
  std::vector<const CachedWeight*> small;
  for (const CachedWeight& one : weights)
    if (is_for_one_thread(one.weight))
      small.push_back(&one);
    else
      ask(one);
  at::parallel_for(0, static_cast<int64_t>(small.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ask(*small[static_cast<size_t>(i)]);
  });
}

}  // namespace qat
