#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// The format of LibTorch programs, named "safetensors": any layer, its tensors as QuantizedWeights
// has them, except that codes of up to 4 bits are packed.
//
//   <name>.codes             int32, packed along the input axis in 2, 3 or 4 bits (ops/pack.h), of
//                            E2M1 sign and magnitude bits (minifloat.h); int8 for wider integers,
//                            torch's FP8 type for wider floats
//   <name>.scale             [grid_rows, grid_cols], in its stored dtype, or its codes, of powers of
//                            two the bytes of E8M0
//   <name>.zero_point        int8 like it, on asymmetric grids
//   <name>.offset            of grids that have them, as the scale
//   <name>.outer_scale, <name>.outer_offset       what scales and offsets are multiples of
//   <name>.input_scale, <name>.input_zero_point   of calibrated inputs
//
// The specs are in the configuration: {"quant_method": "torchqat", "version": 1, "layers": ...};
// version 2 where a layer is of a type that version 1 does not have.
std::string plain_refusal(const LayerPlan& layer);
NamedTensors plain_tensors(const QuantizedWeights& layer);
Documents plain_documents(const CheckpointPlan& plan);

constexpr int kPlainVersion = 2;  // the newest, which reads the older
// Whether codes of this width share words.
bool plain_is_packed(const QuantSpec& spec);
// What scales of this code are written in; `dtype` is that of numbers.
at::ScalarType plain_scale_dtype(const ScaleSpec& scale, at::ScalarType dtype);
// As they are packed: int8 codes [out, in] around 0; and the codes from them.
at::Tensor plain_packable(const at::Tensor& codes, const QuantSpec& spec);
at::Tensor plain_codes(const at::Tensor& packable, const QuantSpec& spec);

}  // namespace qat
