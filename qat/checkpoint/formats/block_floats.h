#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "qat/artifact.h"
#include "qat/recipe/plan.h"

namespace qat {

// What the formats that hold NVFP4 and the MX types have in common: floats of 4, 6 or 8 bits in
// blocks of 16 or 32 columns, whose scales are codes of a byte.

// "nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3" or "mxfp8_e5m2"; empty for others.
std::string block_float_name(const QuantSpec& spec);

// The type's name of weights, "" where they are none; of inputs likewise, "" without any.
std::string weight_float_name(const LayerPlan& layer);
std::string input_float_name(const LayerPlan& layer);

// Codes of 4 bits, two to a byte, the first in the lower half: [out, in] to uint8 [out, in / 2].
at::Tensor packed_nibbles(const at::Tensor& codes, Grid grid);

// Codes of 6 bits, four to three bytes, the first in the lowest bits: uint8 [out, 3 * in / 4].
at::Tensor packed_sextets(const at::Tensor& codes, Grid grid);

// The codes of scales as bytes, [out, groups].
at::Tensor scale_bytes(const QuantizedWeights& layer);

}  // namespace qat
