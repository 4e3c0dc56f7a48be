#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "qat/ops/api.h"

namespace qat {

// KL(teacher || student) of each token, and its gradient in the same pass; numerics.md (12).
//
//   student      float32, float16 or bfloat16 [..., choices]: logits
//   teacher      of the same shape, any of these dtypes
//   temperature  divides both logits, from 1e-18 to 1e18
//   counted      bool [...], the tokens that count; none: all
//   share        float32, one element: what the gradient is multiplied with; none: no gradient
//
// On return (kl, gradient): kl is float32 [...], in nats, 0 of tokens that do not count; gradient has
// the shape and dtype of `student`, or is empty: share / temperature * (softmax(student / temperature)
// - softmax(teacher / temperature)). A choice that the teacher's softmax rounds to 0 adds nothing to
// kl; a token with a NaN, an infinity or no logit above minus infinity is NaN. Sums run in a fixed
// order: the same bits for any number of threads, set of instructions, and on a GPU. Not
// differentiable: forward_kl is.
QAT_API std::tuple<at::Tensor, at::Tensor> kl_divergence(
    const at::Tensor& student, const at::Tensor& teacher, double temperature = 1.0,
    const std::optional<at::Tensor>& counted = {}, const std::optional<at::Tensor>& share = {});

// Raises ValueError.
void check_temperature(double temperature);

// The mean of that over the tokens that count (0 where there is none) times the squared temperature:
// one element, float32. Differentiable in `student`, once, whose gradient is found with the value and takes
// as much memory; of float16 logits, whose range losses are scaled for, in the backward.
QAT_API at::Tensor forward_kl(const at::Tensor& student, const at::Tensor& teacher,
                              double temperature = 1.0,
                              const std::optional<at::Tensor>& counted = {});

}  // namespace qat
