#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// NVIDIA ModelOpt's "unified checkpoint", which TensorRT-LLM loads: hf_quant_config.json beside
// config.json. By the names of its algorithms:
//
//   FP8                        E4M3 weights and calibrated inputs, a scale each
//   FP8_PER_CHANNEL_PER_TOKEN  E4M3, a scale per output channel and per token
//   FP8_PB_WO                  E4M3 weights alone, a scale per block of 128 x 128
//   W4A16_AWQ                  int4 in groups: uint8 [out / 2, in], row 2r in the low nibbles of
//                              row r, two's complement; pre_quant_scale of ones
//   W8A16, W8A8_SQ_PER_CHANNEL int8 per channel, inputs float or calibrated int8
//
// Mixed ones are listed layer by layer.
std::string modelopt_refusal(const LayerPlan& layer);
NamedTensors modelopt_tensors(const QuantizedWeights& layer);
Documents modelopt_documents(const CheckpointPlan& plan);

}  // namespace qat
