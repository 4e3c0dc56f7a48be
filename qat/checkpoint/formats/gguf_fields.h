#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace qat {

// Columns of a block that has no blocks inside it.
constexpr int64_t kGgufBlock = 32;

// Bytes as llama.cpp's blocks have them: tensors uint8 [out, blocks, bytes].

// Two-byte numbers [out, blocks] as bytes [out, blocks, 2].
at::Tensor bytes_of_halves(const at::Tensor& halves);

// Fields of 1, 2 or 4 bits, uint8 [out, in], side by side in bytes: of each `side` columns, those that lie
// side * bits / 8 apart share a byte, the first in its lowest bits. With side = 8 / bits they are
// neighbours. [out, in / block, block * bits / 8].
at::Tensor fields(const at::Tensor& values, int64_t block, int64_t side, int bits);

// Blocks [out, blocks, bytes] of parts, which follow each other, as rows [out, all bytes].
at::Tensor rows_of_blocks(const std::vector<at::Tensor>& parts);

}  // namespace qat
