#pragma once

#include "qat/checkpoint/formats/format.h"
#include "qat/ops/api.h"

namespace qat {

// llama.cpp's blocks. The container around them is written by the gguf package.
//
//   Q4_0   symmetric, up to 4 bits: float16 scale, 16 bytes: byte j has columns j and j + 16
//   Q4_1   asymmetric, up to 4 bits: float16 scale, float16 least level, then as Q4_0
//   Q5_0   symmetric, 5 bits: float16 scale, 4 bytes of fifth bits, then as Q4_0
//   Q5_1   5 bits over an offset: as Q5_0 with the offset, float16, after the scale
//   Q8_0   symmetric, 6 to 8 bits: float16 scale, 32 int8
//   Q2_0   symmetric, 2 bits, blocks of 64: float16 scale, 16 bytes, byte j has columns 4j ... 4j + 3
//   TQ2_0  -1, 0 and 1, blocks of 256: 64 bytes, float16 scale
//   IQ4_NL as Q4_0, places in a table of sixteen levels
//   IQ4_XS eight times 32 such places, scales of 6 bits under a float16 number for 256
//   Q2_K ... Q6_K   super-blocks of 256 (gguf_k.h)
//   MXFP4  a byte of scale, 2^(byte - 127), and 32 codes of E2M1
//   NVFP4  blocks of 64: four E4M3 scales and four times 16 codes of E2M1, under one float32 number
//          for the whole weight, which is a tensor of its own
//
// Inputs are float, or int8 in groups of 32, or of 256 where blocks have 256 columns, which is how
// llama.cpp rounds them on a CPU anyhow.
//
// Groups are a multiple of a block's columns, each of whose blocks repeats the scale; 2 bits in other
// groups than of 64 go into Q4_0. The least level of Q4_1 that has zero points, -scale * (zero_point
// + 8), must be a float16 number: with scale_dtype float16 it always is (numerics.md 7b).
std::string gguf_refusal(const LayerPlan& layer);

// "Q4_0", "Q4_K", "NVFP4" and so on: the type of a layer of so many columns that is not refused.
QAT_API std::string gguf_type(const QuantSpec& spec, int64_t columns);

// Bits that its blocks spend on a weight, where these are not those that share a scale, else 0: those
// of Q4_0 repeat a scale that more columns share, and have room for 4 bits where codes have 2 or 3.
double gguf_bits(const QuantSpec& spec, int64_t columns);

// <name>.weight: uint8 [out, in / columns of a block * its bytes]; of NVFP4 <name>.scale as well, float32
// [1], by which llama.cpp multiplies the product. Throws std::invalid_argument,
// naming the layer, when a least level is no float16 number.
NamedTensors gguf_tensors(const QuantizedWeights& layer);

// None: its configuration is in the file.
Documents gguf_documents(const CheckpointPlan& plan);

}  // namespace qat
