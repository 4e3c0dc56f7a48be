#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "qat/artifact.h"

namespace qat {

// llama.cpp's blocks with one float16 scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_0, TQ2_0 and IQ4_NL (gguf.h).

// Columns of a block of `type`.
int64_t simple_block(const std::string& type);

// uint8 [out, in / columns of a block * its bytes]. Throws InvalidArgument, naming the layer, when a
// least level of Q4_1 is no float16 number.
at::Tensor simple_blocks(const QuantizedWeights& layer, const std::string& type);

}  // namespace qat
