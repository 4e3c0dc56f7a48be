#include "qat/checkpoint/formats/onnx.h"

namespace qat {
namespace {

// [out, groups] as DequantizeLinear reads it along the axis that it varies on.
at::Tensor as_operand(const at::Tensor& grid, Granularity granularity) {
  switch (granularity) {
    case Granularity::tensor:
      return grid.reshape({});
    case Granularity::channel:
      return grid.reshape({-1});
    default:
      return grid.t().contiguous();
  }
}

}  // namespace

std::string onnx_refusal(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8()) return "its weights must be integers, but are " + dtype_name(weight);
  if (weight.granularity == Granularity::block)
    return "DequantizeLinear has scales per tensor, channel or group, but the weights have block";
  if (layer.type.rfind("Conv", 0) == 0 && weight.granularity == Granularity::group)
    return "a kernel has scales per tensor or channel, but the weights have groups";
  if (!layer.input) return "";
  if (layer.input->is_float8() || layer.input->bits != 8)
    return "its inputs must be int8, but are " + dtype_name(*layer.input);
  if (layer.input->dynamic || layer.input->granularity != Granularity::tensor)
    return "QuantizeLinear has a fixed scale, but the inputs have one per token, or find it anew; "
           "granularity: tensor, dynamic: false calibrates one";
  return "";
}

NamedTensors onnx_tensors(const QuantizedWeights& layer) {
  const Granularity granularity = layer.weight.granularity;
  NamedTensors tensors{{layer.name + ".weight", layer.codes.t().contiguous()},
                       {layer.name + ".scale", as_operand(layer.scale, granularity)}};
  if (layer.zero_point)
    tensors[layer.name + ".zero_point"] = as_operand(*layer.zero_point, granularity);
  return tensors;
}

Documents onnx_documents(const CheckpointPlan& /*plan*/) { return {}; }

}  // namespace qat
