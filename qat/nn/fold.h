#pragma once

#include <torch/nn/module.h>

#include <vector>

#include "qat/nn/calibrate.h"

namespace qat {

// Applies a transform that needs a place to fold its scales into, awq or smoothquant, to one fold: chooses a scale for each feature of the consumers' input, multiplies the
// columns of their weights by it and divides what the source gives. Throws std::invalid_argument,
// having changed nothing, when a name is that of no such layer, and when the input of the consumers
// then is not what it was, divided: something that lies between source and consumers does not let a
// scale pass. Data that never reach the consumers leave all as it is.
void apply_fold(torch::nn::Module& module, const Fold& fold, Transform transform,
                const Initialize& settings, const std::vector<Pass>& passes);

}  // namespace qat
