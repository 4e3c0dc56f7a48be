#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// The format of mlx-lm, "mlx": for a quantized linear layer or embedding
//
//   <name>.weight   uint32 [out, in * bits / 32], unsigned codes in a stream of bits along the row, the
//                   first in the lowest (ops/pack.h)
//   <name>.scales   [out, in / group]
//   <name>.biases   likewise, in the mode affine alone
//
// The mode affine has codes of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128 columns; wider blocks
// are cut into such groups. Its weight is scale * code + bias, where the bias is that of code 0: the
// negated zero point times the scale. MLX computes both steps in the dtype of the scales, so that
// products must be exact there. mxfp4 and mxfp8 have the bytes of E8M0 for each 32 columns, nvfp4
// those of E4M3 for each 16, under no outer scale, which mlx-lm's linear layers have no place for.
//
// The configuration has the scheme of most layers, and of each layer under its name, false for those
// that stay in floating point.
std::string mlx_refusal(const LayerPlan& layer);
// Throws std::invalid_argument, naming the layer, where a product is not exact.
NamedTensors mlx_tensors(const QuantizedWeights& layer);
Documents mlx_documents(const CheckpointPlan& plan);

// Bits of the codes of a row, and of its scales and biases.
int64_t mlx_row_bits(const QuantSpec& spec, const std::optional<QuantSpec>& input, int64_t count);
int64_t mlx_grid_bits(const QuantSpec& spec, int64_t cols, int64_t scale_bits);

// Bits of a code.
int mlx_bits(const QuantSpec& spec);

}  // namespace qat
