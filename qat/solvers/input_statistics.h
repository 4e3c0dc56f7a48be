#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "qat/ops/api.h"

namespace qat {

// What calibration remembers of the inputs of linear layers that share them, however many tokens
// pass: numerics.md (14). Tokens with an element that is not finite are ignored and counted.
class QAT_API InputStatistics {
 public:
  // `drift`: also gather the matrix D, which the correction of GPTQ needs; every add() then takes
  // the tokens of the float model beside those of the quantized one.
  explicit InputStatistics(int64_t features, bool drift = false);

  // `x` [..., features], any floating dtype; `original` the same tokens as the float model has
  // them. Throws std::invalid_argument when the last axis is not `features`, or when `original` is
  // missing or given against the constructor's word.
  void add(const at::Tensor& x, const std::optional<at::Tensor>& original = std::nullopt);

  // H = Σ x xᵀ / tokens, float32 [features, features], symmetric; zeros before the first token.
  at::Tensor hessian() const;
  // D = Σ (x_float − x) xᵀ / tokens, or none.
  std::optional<at::Tensor> drift() const;
  // Mean and largest |x| of each feature, float32 [features].
  at::Tensor mean_magnitude() const;
  const at::Tensor& max_magnitude() const { return most_; }

  int64_t features() const { return features_; }
  int64_t tokens() const { return tokens_; }
  int64_t ignored() const { return ignored_; }

 private:
  int64_t features_;
  int64_t tokens_ = 0;
  int64_t ignored_ = 0;
  at::Tensor products_;   // Σ x xᵀ
  at::Tensor drift_;      // Σ (x_float − x) xᵀ; undefined without
  at::Tensor magnitude_;  // Σ |x|, float64
  at::Tensor most_;
};

}  // namespace qat
