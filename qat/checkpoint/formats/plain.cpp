#include "qat/checkpoint/formats/plain.h"

#include <ATen/Functions.h>

#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/minifloat.h"
#include "qat/checkpoint/formats/spec_json.h"
#include "qat/checkpoint/formats/table.h"
#include "qat/ops/pack.h"

namespace qat {

using nlohmann::json;

namespace {

void add(NamedTensors& tensors, const std::string& name, const std::optional<at::Tensor>& tensor) {
  if (tensor) tensors[name] = *tensor;
}

}  // namespace

at::ScalarType plain_scale_dtype(const ScaleSpec& scale, at::ScalarType dtype) {
  return is_power_of_two(scale.code) ? at::kByte : scale_storage(scale, dtype);
}

bool plain_is_packed(const QuantSpec& spec) { return spec.bits <= 4; }

at::Tensor plain_packable(const at::Tensor& codes, const QuantSpec& spec) {
  const int middle = 1 << (spec.bits - 1);
  if (spec.is_float()) return minifloat_bits(codes, spec.grid).to(at::kChar).sub(middle);
  if (spec.grid == Grid::iq4_nl) return table_places(codes).to(at::kChar).sub(middle);
  return spec.has_offset() ? codes.sub(middle) : codes;
}

at::Tensor plain_codes(const at::Tensor& packable, const QuantSpec& spec) {
  const int middle = 1 << (spec.bits - 1);
  if (spec.is_float()) return minifloat_of_bits(packable.add(middle).to(at::kByte), spec.grid);
  if (spec.grid == Grid::iq4_nl) return table_codes(packable.add(middle));
  return spec.has_offset() ? packable.add(middle) : packable;
}

std::string plain_refusal(const LayerPlan& /*layer*/) { return ""; }

NamedTensors plain_tensors(const QuantizedWeights& layer) {
  const std::string& name = layer.name;
  const bool packed = plain_is_packed(layer.weight);
  NamedTensors tensors{
      {name + ".codes",
       packed ? pack(plain_packable(layer.codes, layer.weight), layer.weight.bits) : layer.codes},
      {name + ".scale",
       is_power_of_two(layer.weight.scale.code) ? layer.scale.view(at::kByte) : layer.scale}};
  add(tensors, name + ".zero_point", layer.zero_point);
  add(tensors, name + ".offset", layer.offset);
  add(tensors, name + ".outer_scale", layer.outer_scale);
  add(tensors, name + ".outer_offset", layer.outer_offset);
  add(tensors, name + ".input_scale", layer.input_scale);
  add(tensors, name + ".input_zero_point", layer.input_zero_point);
  return tensors;
}

Documents plain_documents(const CheckpointPlan& plan) {
  json layers = json::object();
  int version = 1;
  for (const LayerPlan& layer : plan.layers) {
    for (const auto& spec : {layer.weight, layer.input})
      if (spec && is_coded(*spec)) version = kPlainVersion;  // for which version 1 has no words
    json& entry = layers[layer.name];
    entry = {{"shape", {layer.out_features, layer.in_features}},
             {"weight", to_json(*layer.weight)}};
    if (layer.input) entry["input"] = to_json(*layer.input);
  }
  const json config = {{"quant_method", "torchqat"}, {"version", version}, {"layers", layers}};
  return {{"config.json", config.dump()}};
}

}  // namespace qat
