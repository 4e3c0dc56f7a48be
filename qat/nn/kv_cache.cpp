#include "qat/nn/kv_cache.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "qat/error.h"
#include "qat/ops/checks.h"
#include "qat/ops/kv_cache.h"

namespace qat {
namespace {

at::Tensor rounded(const at::Tensor& x, const QuantSpec& spec, const at::Tensor& scale,
                   int64_t first) {
  // Found on the host.
  const auto given = scale.defined() ? std::optional(scale.to(x.device())) : std::nullopt;
  return fake_quantize_cache(x, given, name_of(spec.granularity), spec.group_size, spec.bits,
                             grid_name(spec.grid), first, scale_code_name(spec.scale.code));
}

bool has_range(const Observer& observer) {
  return !observer.empty() && (observer.low() != 0.0 || observer.high() != 0.0);
}

at::Tensor repeated(const at::Tensor& x, int64_t heads) {
  return x.size(1) == heads ? x : x.repeat_interleave(heads / x.size(1), 1);
}

}  // namespace

KvCache::KvCache(const KvCacheSpec& spec, int64_t heads, int64_t head_size) : spec_(spec) {
  for (const QuantSpec* side : {&spec.key, &spec.value})
    if (side->granularity == Granularity::group && head_size % side->group_size != 0) {
      const std::string size = std::to_string(head_size), group = std::to_string(side->group_size);
      throw InvalidArgument(
          dtype_of(side->scale.code)
              ? "kv_cache.group_size must divide the head size, " + size + ", but is " + group + "."
              : "kv_cache.dtype of groups of " + group + " needs heads whose size " + group +
                    " divides, but that is " + size + ".");
    }
  const auto observers = [&](const QuantSpec& side) {
    const int64_t count = side.dynamic ? 0 : side.granularity == Granularity::head ? heads : 1;
    return Observers(static_cast<size_t>(count), Observer(side.observer));
  };
  key_observers_ = observers(spec.key);
  value_observers_ = observers(spec.value);
}

void KvCache::observe_heads(Observers& observers, const at::Tensor& x) {
  if (observers.size() == 1) return observers.front().observe(x);
  for (size_t head = 0; head < observers.size(); ++head)
    observers[head].observe(x.select(1, static_cast<int64_t>(head)));
}

void KvCache::observe(const at::Tensor& key, const at::Tensor& value) {
  const at::NoGradGuard no_grad;
  // What never is quantized has no say in the range.
  const auto beyond = [&](const at::Tensor& x) {
    return x.slice(2, std::min(spec_.first, x.size(2)));
  };
  if (!key_observers_.empty()) observe_heads(key_observers_, beyond(key));
  if (!value_observers_.empty()) observe_heads(value_observers_, beyond(value));
}

at::Tensor KvCache::scale_of(const QuantSpec& spec, const Observers& observers) {
  std::vector<at::Tensor> scales, known;
  for (const Observer& observer : observers) {
    scales.push_back(std::get<0>(observer.qparams(spec, spec.bits)).view({1}));
    if (has_range(observer)) known.push_back(scales.back());
  }
  if (known.empty()) return {};
  const at::Tensor largest = at::cat(known).amax(0, /*keepdim=*/true);
  for (size_t head = 0; head < observers.size(); ++head)
    if (!has_range(observers[head])) scales[head] = largest;
  return at::cat(scales);
}

std::vector<std::string> KvCache::notes() const {
  std::vector<std::string> found;
  for (const auto& [what, side] :
       {std::pair("keys", &key_observers_), {"values", &value_observers_}}) {
    const auto count = static_cast<size_t>(std::count_if(side->begin(), side->end(), has_range));
    const bool observed =
        std::any_of(side->begin(), side->end(), [](const Observer& one) { return !one.empty(); });
    if (!observed || count == side->size()) continue;
    const std::string all = std::to_string(side->size());
    const std::string given = std::string("was given ") + what + " of zeros alone ";
    found.push_back(count == 0 ? given + "by all calibration batches, so its cache has no range"
                               : given + "in " + std::to_string(side->size() - count) + " of " +
                                     all + " heads, which have the largest scale of the others");
  }
  return found;
}

int64_t KvCache::ignored() const {
  int64_t count = 0;
  for (const Observers* side : {&key_observers_, &value_observers_})
    for (const Observer& observer : *side) count += observer.ignored();
  return count;
}

std::tuple<at::Tensor, at::Tensor> KvCache::fake_quantize(const at::Tensor& key,
                                                          const at::Tensor& value) const {
  const at::Tensor key_scale = this->key_scale(), value_scale = this->value_scale();
  const auto ready = [](const QuantSpec& spec, const at::Tensor& scale) {
    return spec.dynamic || scale.defined();
  };
  return {ready(spec_.key, key_scale) ? rounded(key, spec_.key, key_scale, spec_.first) : key,
          ready(spec_.value, value_scale) ? rounded(value, spec_.value, value_scale, spec_.first)
                                          : value};
}

at::Tensor KvCache::attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const std::optional<at::Tensor>& mask, double scaling) const {
  const int64_t queries = query.size(2), keys = key.size(2), heads = query.size(1);
  auto [seen_key, seen_value] = fake_quantize(key, value);
  const double never = -std::numeric_limits<double>::infinity();
  at::Tensor added = mask.value_or(at::Tensor());
  if (!added.defined()) {
    const auto order = query.options().dtype(at::kLong);
    const at::Tensor later =
        at::arange(keys, order).unsqueeze(0) > at::arange(keys - queries, keys, order).unsqueeze(1);
    added = at::zeros({queries, keys}, query.options()).masked_fill(later, never);
  }
  if (spec_.mixes()) {
    const int64_t group = spec_.key.granularity == Granularity::channel ? spec_.key.group_size : 1;
    const at::Tensor quantized =
        quantized_pairs(query, queries, keys, group, spec_.recent, spec_.first);
    added = at::cat(
        {added.masked_fill(quantized.logical_not(), never), added.masked_fill(quantized, never)},
        -1);
    seen_key = at::cat({seen_key, key}, 2);
    seen_value = at::cat({seen_value, value}, 2);
  }
  return at::scaled_dot_product_attention(query, repeated(seen_key, heads),
                                          repeated(seen_value, heads), added, /*dropout_p=*/0.0,
                                          /*is_causal=*/false, scaling);
}

}  // namespace qat
