#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/kv_cache_spec.h"
#include "qat/solvers/observer.h"

namespace qat {

// The cache of one attention layer: what it gives back, and the scales that it needs for that.
class QAT_API KvCache {
 public:
  // Throws std::invalid_argument for a group that does not divide `head_size`.
  KvCache(const KvCacheSpec& spec, int64_t heads, int64_t head_size);

  // Key and value [batch, heads, tokens, head_size], from which scales are found.
  void observe(const at::Tensor& key, const at::Tensor& value);
  // Float32 [1], or [heads] for granularity head; undefined for those found in every call, and
  // where nothing but zeros was observed, which fit under any scale. A head that was given zeros
  // alone has the largest scale of the others.
  at::Tensor key_scale() const { return scale_of(spec_.key, key_observers_); }
  at::Tensor value_scale() const { return scale_of(spec_.value, value_observers_); }
  int64_t ignored() const;
  // What was given zeros alone, in words that follow the name of the layer.
  std::vector<std::string> notes() const;

  // What attention reads. As they are before the first observation, where one is needed.
  std::tuple<at::Tensor, at::Tensor> fake_quantize(const at::Tensor& key,
                                                   const at::Tensor& value) const;

  // The attention of queries [batch, query_heads, queries, head_size] to the cache, each to what is
  // quantized for it and what is not: softmax(q kᵀ · scaling + mask) v. `mask` is added to the
  // scores, [queries, keys] or broadcast to it; without one attention is causal.
  at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const std::optional<at::Tensor>& mask, double scaling) const;

  const KvCacheSpec& spec() const { return spec_; }

 private:
  using Observers = std::vector<Observer>;  // one, or one a head; none for dynamic
  static at::Tensor scale_of(const QuantSpec& spec, const Observers& observers);
  static void observe_heads(Observers& observers, const at::Tensor& x);

  KvCacheSpec spec_;
  Observers key_observers_, value_observers_;
};

}  // namespace qat
