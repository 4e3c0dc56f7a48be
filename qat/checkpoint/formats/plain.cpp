#include "qat/checkpoint/formats/plain.h"

#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/spec_json.h"
#include "qat/ops/pack.h"

namespace qat {

using nlohmann::json;

bool plain_is_packed(const QuantSpec& spec) { return !spec.is_float8() && spec.bits <= 4; }

std::string plain_refusal(const LayerPlan& /*layer*/) { return ""; }

NamedTensors plain_tensors(const QuantizedWeights& layer) {
  const std::string& name = layer.name;
  const bool packed = plain_is_packed(layer.weight);
  NamedTensors tensors{
      {name + ".codes", packed ? pack(layer.codes, layer.weight.bits) : layer.codes},
      {name + ".scale", layer.scale}};
  if (layer.zero_point) tensors[name + ".zero_point"] = *layer.zero_point;
  if (layer.input_scale) tensors[name + ".input_scale"] = *layer.input_scale;
  if (layer.input_zero_point) tensors[name + ".input_zero_point"] = *layer.input_zero_point;
  return tensors;
}

Documents plain_documents(const CheckpointPlan& plan) {
  json layers = json::object();
  for (const LayerPlan& layer : plan.layers) {
    json& entry = layers[layer.name];
    entry = {{"shape", {layer.out_features, layer.in_features}},
             {"weight", to_json(*layer.weight)}};
    if (layer.input) entry["input"] = to_json(*layer.input);
  }
  const json config = {
      {"quant_method", "torchqat"}, {"version", kPlainVersion}, {"layers", layers}};
  return {{"config.json", config.dump()}};
}

}  // namespace qat
