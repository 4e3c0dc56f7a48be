#pragma once

#include "qat/checkpoint/formats/format.h"
#include "qat/ops/api.h"

namespace qat {

// The compressed-tensors format of vLLM and transformers; layers become
//
//   weights alone, or 4-bit ones with FP8 inputs
//       pack-quantized: weight_packed int32, weight_scale, weight_shape and, on an asymmetric grid,
//       weight_zero_point packed along the output axis
//   int8 or int4 weights with int8 inputs
//       int-quantized: weight int8, weight_scale, and input_scale (and input_zero_point) when the
//       input is calibrated
//   FP8 weights, with FP8 inputs or without
//       float-quantized: weight in torch's FP8, weight_scale, input_scale
//   nvfp4, mxfp4, mxfp6_e2m3 and mxfp8_e4m3, alone or with inputs in blocks
//       nvfp4-pack-quantized, mxfp4-pack-quantized, mxfp6-pack-quantized: weight_packed uint8, two codes
//       a byte or four in three; mxfp8-quantized: weight in torch's FP8. weight_scale is E4M3 under a
//       divisor weight_global_scale (nvfp4), or exponents in uint8; input_global_scale divides the
//       scales of inputs in nvfp4
//
// Codes of 3 bits are stored in 4, those of 5 to 7 in 8, which every reader knows. The format
// "compressed-tensors-0.18" is the same but that they take their own width, in a stream that
// straddles words, which readers older than that version take for something else.
std::string compressed_tensors_refusal(const LayerPlan& layer);
NamedTensors compressed_tensors_of(const QuantizedWeights& layer);
Documents compressed_tensors_documents(const CheckpointPlan& plan);
NamedTensors dense_compressed_tensors_of(const QuantizedWeights& layer);
Documents dense_compressed_tensors_documents(const CheckpointPlan& plan);

// Bits that a row of codes takes: whole words, or bytes beside inputs that are integers, too.
int64_t compressed_row_bits(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                            int64_t count);
int64_t dense_compressed_row_bits(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                                  int64_t count);

// Whether inputs are rounded to integers.
bool has_int8_inputs(const LayerPlan& layer);

// Whether a checkpoint can tell engines of this cache: FP8 E4M3 with a scale per tensor or per
// head, k_scale and v_scale beside each attention layer. Others are settings of the engine.
QAT_API bool holds_kv_cache(const KvCacheSpec& spec);

}  // namespace qat
