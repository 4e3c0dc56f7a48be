#pragma once

#include <ATen/core/Tensor.h>

#include <mutex>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// What a layer keeps of its quantized weight while the weight stays as it is: between a forward and
// its backward, and over the micro-batches of one optimizer step.
enum class CachePolicy {
  none,     // nothing; the weight is quantized anew in every forward and backward
  codes,    // codes, two to a byte up to 4 bits, and scales; decoded where they are needed
  weights,  // the rounded weight
};

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
                              const std::optional<at::Tensor>& scale,
                              const std::optional<at::Tensor>& zero_point, at::ScalarType dtype);
  void clear();

  CachePolicy policy() const { return policy_; }
  // Bytes held.
  int64_t bytes() const;

 private:
  // Where a tensor lies and how often it was written.
  struct Stamp {
    const void* data = nullptr;
    int64_t version = -1;
    bool operator==(const Stamp&) const = default;
  };
  struct Key {
    Stamp weight, scale, zero_point;
    std::string quantizer;
    at::ScalarType dtype = at::kFloat;
    bool operator==(const Key&) const = default;
  };
  static Stamp stamp_of(const std::optional<at::Tensor>& tensor);
  static std::vector<at::Tensor> make(const Quantizer& quantizer, const at::Tensor& weight,
                                      const std::optional<at::Tensor>& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::ScalarType dtype, bool as_codes);

  CachePolicy policy_;
  Key key_;
  std::vector<at::Tensor> kept_;
  mutable std::mutex mutex_;
};

}  // namespace qat
