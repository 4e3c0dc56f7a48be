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
//   W4A16_NVFP4, NVFP4         E2M1, two columns a byte, an E4M3 scale for 16 of them, weight_scale_2 for
//                              all; inputs float, or in the same under a calibrated input_scale
//   MXFP8                      E4M3, exponents in uint8 for 32 columns; inputs likewise
//   W8A16, W8A8_SQ_PER_CHANNEL int8 per channel, inputs float or calibrated int8
//
// Mixed ones are listed layer by layer.
std::string modelopt_refusal(const LayerPlan& layer);
NamedTensors modelopt_tensors(const QuantizedWeights& layer);
Documents modelopt_documents(const CheckpointPlan& plan);

}  // namespace qat
