#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "qat/initialize.h"

namespace qat {

// What calibration found.
struct Calibration {
  std::map<std::string, double> losses;   // squared error of each rounded layer's output, per token
  std::map<std::string, int64_t> tokens;  // calibrated tokens of each layer
  std::vector<std::string> warnings;      // what had to be done differently, one sentence each
};

// Runs the module on one batch.
using Forward = std::function<void(const at::Tensor& batch)>;

// Rounds the weights of a prepared module as `settings` say, layer after layer in the order in
// which they run, each on what the rounded layers before it give; then finds the scales of inputs
// that are fixed beforehand. Layers that are given the same tensor share one pass, or, unless
// settings.sequential, all of them do.
//
// In a LibTorch program nothing tells which module produced an input, so scales of AWQ and
// SmoothQuant have nowhere to go: awq clips alone, and each transform that is left out has its
// warning. Blocks are the user's own modules: block_training is left out likewise.
//
// Throws std::invalid_argument without a batch, when a method or an input needs one.
Calibration calibrate(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                      const Forward& forward, const Initialize& settings);

}  // namespace qat
