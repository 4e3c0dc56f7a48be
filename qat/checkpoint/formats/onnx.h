#pragma once

#include "qat/checkpoint/formats/format.h"

namespace qat {

// What the graph that torchqat/checkpoints/formats/onnx.py writes can hold: INT4 and INT8 weights behind a
// DequantizeLinear (opset 21), and inputs between a QuantizeLinear and a DequantizeLinear.
std::string onnx_refusal(const LayerPlan& layer);

// <name>.weight: the codes as MatMul's second operand, int8 [in, out]; <name>.scale [groups, out],
// [out] or []; <name>.zero_point like it.
NamedTensors onnx_tensors(const QuantizedWeights& layer);

// None: its configuration is in the graph.
Documents onnx_documents(const CheckpointPlan& plan);

}  // namespace qat
