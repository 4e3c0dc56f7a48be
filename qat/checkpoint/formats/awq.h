#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// The GEMM format of AutoAWQ: 4 bits, packed along the output axis, the columns of each word
// interleaved as its kernel unpacks them:
//
//   qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales float16 [groups, out]
//
// One scheme for the whole model. Symmetric weights are written with the zero point 8, because
// readers expect one.
std::string awq_refusal(const LayerPlan& layer);
NamedTensors awq_tensors(const QuantizedWeights& layer);
Documents awq_documents(const CheckpointPlan& plan);

}  // namespace qat
