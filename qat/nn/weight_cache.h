#pragma once

#include <ATen/core/Tensor.h>

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "qat/names.h"
#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// What a layer keeps of its quantized weight while the weight stays as it is: between a forward and
// its backward, and over the micro-batches of one optimizer step.
enum class CachePolicy {
  automatic,  // "auto": nothing, until somebody who knows the device's memory chooses another
  none,       // nothing; the weight is quantized anew in every forward and backward
  codes,      // codes, two to a byte up to 4 bits, and scales; decoded where they are needed
  weights,    // the rounded weight
};

QAT_API const NameTable<CachePolicy>& cache_policies();
QAT_API const char* name_of(CachePolicy policy);
// Throws std::invalid_argument with the allowed names.
QAT_API CachePolicy parse_cache_policy(const std::string& name);

// One layer's cache. It notices a changed weight, scale or zero point by its version, which every
// in-place operation moves, and by its address; what is written past torch's back, through `.data`,
// needs clear().
class QAT_API WeightCache {
 public:
  explicit WeightCache(CachePolicy policy = CachePolicy::none) : policy_(policy) {}
  // A copied layer begins with nothing.
  WeightCache(const WeightCache& other) : policy_(other.policy_) {}
  WeightCache& operator=(const WeightCache& other);

  // For the argument `kept` of quant_linear (ops/quant_linear.h); `dtype` is that of its input.
  std::vector<at::Tensor> get(const Quantizer& quantizer, const at::Tensor& weight,
                              const Quantizer::Parameters& parameters, at::ScalarType dtype);
  // Drops what is kept.
  void clear();

  CachePolicy policy() const { return policy_; }
  // Bytes held.
  int64_t bytes() const;
  // The dtype that was asked for last; none before the first time.
  std::optional<at::ScalarType> dtype() const;
  // How often what is kept was made.
  int64_t version() const;

 private:
  // Where a tensor lies and how often it was written.
  struct Stamp {
    const void* data = nullptr;
    int64_t version = -1;
    bool operator==(const Stamp&) const = default;
  };
  struct Key {
    Stamp weight, scale, zero_point, outer_scale;
    // Kept, so that another one cannot come to lie where it lay: it is made anew with each change.
    std::optional<at::Tensor> outer;
    std::string quantizer;
    at::ScalarType dtype = at::kFloat;
    bool operator==(const Key& other) const;
  };
  static Stamp stamp_of(const std::optional<at::Tensor>& tensor);
  static std::vector<at::Tensor> make(const Quantizer& quantizer, const at::Tensor& weight,
                                      const Quantizer::Parameters& parameters, at::ScalarType dtype,
                                      bool as_codes);

  CachePolicy policy_;
  Key key_;
  std::vector<at::Tensor> kept_;
  std::optional<at::ScalarType> dtype_;
  int64_t version_ = 0;
  mutable std::mutex mutex_;
};

// What a cache is asked for, but for the dtype, which is the one of last time.
struct QAT_API CachedWeight {
  WeightCache* cache;
  Quantizer quantizer;
  at::Tensor weight;
  Quantizer::Parameters parameters;
};

// Asks all caches at once, after an optimizer has written the weights, so that no forward has to:
// the same bits. On a CPU small weights are rounded beside each other, each by one thread; on a GPU
// nothing waits for it. A cache that no forward has asked yet stays as it is.
QAT_API void fill(const std::vector<CachedWeight>& weights);

}  // namespace qat
