#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// The format of AutoGPTQ and GPTQModel, packed along the input axis:
//
//   qweight int32 [in * bits / 32, out]   codes, unsigned
//   qzeros  int32 [groups, out * bits / 32]   zero points, unsigned; `gptq` stores them less one
//   scales  float16 [groups, out]
//   g_idx   int32 [in]   group of each column: in order, whatever order the codes were found in
//
// `gptq` is read with symmetric weights alone: an asymmetric zero of 0 wraps around, and readers
// disagree on what it means. `gptq_v2` takes both. Codes of 5 to 7 bits are stored in 8.
std::string gptq_refusal(const LayerPlan& layer);
NamedTensors gptq_tensors(const QuantizedWeights& layer);
Documents gptq_documents(const CheckpointPlan& plan);

std::string gptq_v2_refusal(const LayerPlan& layer);
NamedTensors gptq_v2_tensors(const QuantizedWeights& layer);
Documents gptq_v2_documents(const CheckpointPlan& plan);

}  // namespace qat
