#pragma once

#include "qat/checkpoint/formats/format.h"
#include "qat/ops/api.h"

namespace qat {

// llama.cpp's blocks of 32 columns. The container around them is written by the gguf package.
//
//   Q4_0   symmetric, up to 4 bits: float16 scale, 16 bytes: byte j has columns j and j + 16
//   Q4_1   asymmetric, up to 4 bits: float16 scale, float16 least level, then as Q4_0
//   Q8_0   symmetric, 5 to 8 bits: float16 scale, 32 int8
//   MXFP4  a byte of scale, 2^(byte - 127), and 32 codes of E2M1
//   NVFP4  blocks of 64: four E4M3 scales and four times 16 codes of E2M1, under one float32 number
//          for the whole weight, which is a tensor of its own
//
// Inputs are float, or int8 in groups of 32, which is how llama.cpp rounds them on a CPU anyhow.
//
// Groups are a multiple of 32 columns, each of whose blocks repeats the scale. The least level of
// Q4_1, -scale * (zero_point + 8), must be a float16 number: with scale_dtype float16 it always is
// (numerics.md 7b).
std::string gguf_refusal(const LayerPlan& layer);

// "Q4_0", "Q4_1", "Q8_0", "MXFP4" or "NVFP4".
QAT_API std::string gguf_type(const QuantSpec& spec);

// <name>.weight: uint8 [out, in / columns of a block * its bytes]; of NVFP4 <name>.scale as well, float32
// [1], by which llama.cpp multiplies the product. Throws std::invalid_argument,
// naming the layer, when a least level is no float16 number.
NamedTensors gguf_tensors(const QuantizedWeights& layer);

// None: its configuration is in the file.
Documents gguf_documents(const CheckpointPlan& plan);

}  // namespace qat
