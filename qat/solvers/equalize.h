#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "qat/ops/api.h"
#include "qat/outer_parameters.h"
#include "qat/solvers/input_statistics.h"
#include "qat/spec.h"

namespace qat::solvers {

// A linear layer among those that share an input.
struct QAT_API Consumer {
  at::Tensor weight;  // [out, in], any floating dtype
  QuantSpec spec;
  int bits;
  int shares = -1;  // those of one number have one outer scale; -1: its own
};

// Per input feature, what the columns of the weights are multiplied by and the input divided by:
// the layers' outputs stay as they were, and what is rounded becomes easier to round.
struct QAT_API ChannelScale {
  at::Tensor scale;  // float32 [in], positive
  double loss;       // squared output error after rounding, per token, summed over the layers
  double plain;      // the same with all scales 1; loss <= plain
};

// AWQ, arXiv 2306.00978; numerics.md (19): scales are a power of the mean magnitude of each
// feature, the power searched for the least output error, which is measured exactly, on all
// calibrated tokens, through their second moments. `points`: powers 0, 1/points, ... below 1. All
// scales 1 are among the candidates. Throws std::invalid_argument when weights and statistics
// differ in features.
QAT_API ChannelScale awq_scale(const std::vector<Consumer>& consumers,
                               const InputStatistics& inputs, int points = 20);

// SmoothQuant, arXiv 2211.10438 (4); numerics.md (20): max|x|^alpha / max|w|^(1 - alpha), which
// moves the outliers of inputs into weights. Float32 [in].
QAT_API at::Tensor smoothing_scale(const std::vector<at::Tensor>& weights,
                                   const at::Tensor& max_magnitude, double alpha);

// tr(ΔW H ΔWᵀ): the squared error of a layer's output per token, for an error [out, in] of its
// weight.
QAT_API double output_error(const at::Tensor& error, const at::Tensor& hessian);

// Scale and zero point of every block, its range shrunk to the fraction 1, 0.95, ... 0.5 for which
// the block's share of the output is nearest to that of the float weight; numerics.md (21), the
// clipping of AWQ with the second moments of the inputs in place of a sample of them. Where the rule of
// scales takes the better of a / 6 and a / 4, this does. `outer` as of gptq().
QAT_API std::tuple<at::Tensor, at::Tensor> clipped_qparams(const at::Tensor& weight,
                                                           const at::Tensor& hessian,
                                                           const QuantSpec& spec, int bits,
                                                           const OuterParameters& outer = {});

}  // namespace qat::solvers
