#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// The format of LibTorch programs, named "safetensors": any layer, its tensors as QuantizedWeights
// has them, except that codes of up to 4 bits are packed.
//
//   <name>.codes             int32, packed along the input axis in 2, 3 or 4 bits (ops/pack.h);
//                            int8 for wider ones, torch's FP8 type for FP8
//   <name>.scale             [grid_rows, grid_cols], in its stored dtype
//   <name>.zero_point        int8 like it, on asymmetric grids
//   <name>.input_scale, <name>.input_zero_point   of calibrated inputs
//
// The specs are in the configuration: {"quant_method": "torchqat", "version": 1, "layers": ...}.
std::string plain_refusal(const LayerPlan& layer);
NamedTensors plain_tensors(const QuantizedWeights& layer);
Documents plain_documents(const CheckpointPlan& plan);

constexpr int kPlainVersion = 1;
// Whether codes of this width share words.
bool plain_is_packed(const QuantSpec& spec);

}  // namespace qat
