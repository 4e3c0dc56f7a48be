#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "qat/artifact.h"

namespace qat {

// llama.cpp's K-quants: super-blocks of 256 columns, whose scales are whole multiples of a float16
// number `d`, and whose offsets, counted down from 0, of another, `dmin`.
//
//   Q2_K   16 groups: a byte each, scale in the lower half, offset in the upper; 64 bytes of codes; d, dmin
//   Q3_K   16 groups: 32 bytes of the codes' third bits, 64 of their lower two, 12 of scales; d
//   Q4_K   8 groups: d, dmin, 12 bytes of scales and offsets, 128 of codes
//   Q5_K   8 groups: as Q4_K, with 32 bytes of the codes' fifth bits before the others
//   Q6_K   16 groups: 128 bytes of the codes' lower four bits, 64 of the others, 16 scales; d

// Whether `type` is one of them.
bool is_k_quant(const std::string& type);

// uint8 [out, in / 256 * bytes of a super-block].
at::Tensor k_quant_blocks(const QuantizedWeights& layer, const std::string& type);

}  // namespace qat
