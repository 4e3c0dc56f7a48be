#pragma once

#include <ATen/core/Tensor.h>

#include "qat/ops/api.h"

namespace qat {

// Packs codes of 2 to 8 bits into int32 words along the last dimension, as compressed-tensors, GPTQ
// and MLX read them: the code is stored unsigned, u = q + 2^(bits-1), element 0 in the lowest
// bits. Where 32 is no multiple of the bits, codes form a stream in which some straddle two words:
// of 3, 5 and 7 bits in runs of 32 codes, of 6 bits in runs of 16.
// `codes` is int8 [..., cols]; on return int32 [..., packed_words(cols, bits)], unused bits 0.
// Composed from ATen, so it runs wherever its input lives.
QAT_API at::Tensor pack(const at::Tensor& codes, int64_t bits);

// The inverse: int8 [..., cols]. `cols` must be what the words hold, short of less than a word.
QAT_API at::Tensor unpack(const at::Tensor& packed, int64_t bits, int64_t cols);

// The words that `cols` codes take: those of whole runs, beyond which the stream has ended at
// ceil(cols * bits / 32).
QAT_API int64_t packed_words(int64_t cols, int64_t bits);

}  // namespace qat
