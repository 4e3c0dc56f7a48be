#pragma once

#include <ATen/core/Tensor.h>

namespace qat {

// Packs codes of 2, 4 or 8 bits into int32 words along the last dimension, as compressed-tensors
// and GPTQ read them: the code is stored unsigned, u = q + 2^(bits-1), element 0 in the lowest
// bits. `codes` is int8 [..., cols]; on return int32 [..., ceil(cols * bits / 32)], unused bits 0.
// Composed from ATen, so it runs wherever its input lives.
at::Tensor pack(const at::Tensor& codes, int64_t bits);

// The inverse: int8 [..., cols]. `cols` must be what the words hold, short of less than a word.
at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t cols);

}  // namespace qat
