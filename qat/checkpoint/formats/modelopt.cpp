#include "qat/checkpoint/formats/modelopt.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/checkpoint/formats/compressed_tensors.h"
#include "qat/version.h"

namespace qat {
namespace {

using nlohmann::json;

bool is_calibrated(const QuantSpec& input) {
  return !input.dynamic && input.granularity == Granularity::tensor && input.symmetric();
}

// The algorithm's name, empty when there is none for the layer.
std::string float8_algorithm(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  const auto& input = layer.input;
  if (weight.grid != Grid::e4m3 || (input && input->grid != Grid::e4m3)) return "";
  if (weight.granularity == Granularity::tensor && input && is_calibrated(*input)) return "FP8";
  if (weight.granularity == Granularity::channel && input && input->dynamic &&
      input->granularity == Granularity::token)
    return "FP8_PER_CHANNEL_PER_TOKEN";
  if (weight.granularity == Granularity::block && !input &&
      weight.block == std::array<int64_t, 2>{128, 128})
    return "FP8_PB_WO";
  return "";
}

std::string integer_algorithm(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  const auto& input = layer.input;
  if (!weight.symmetric()) return "";
  if (weight.bits == 4 && weight.granularity == Granularity::group && !input &&
      layer.out_features % 2 == 0)
    return "W4A16_AWQ";
  if (weight.bits != 8 || weight.granularity != Granularity::channel) return "";
  if (!input) return "W8A16";
  const bool int8 = !input->is_float8() && input->bits == 8 && is_calibrated(*input);
  return int8 ? "W8A8_SQ_PER_CHANNEL" : "";
}

std::string block_float_algorithm(const LayerPlan& layer) {
  const std::string weight = weight_float_name(layer), input = input_float_name(layer);
  if (layer.in_features % layer.weight->group_size != 0) return "";
  if (weight == "nvfp4" && !layer.input) return "W4A16_NVFP4";
  if (weight == "nvfp4" && input == weight && !layer.input->dynamic) return "NVFP4";
  // Engines round the scales of these inputs up.
  if (weight == "mxfp8_e4m3" && input == weight && layer.input->scale.code == ScaleCode::e8m0_ceil)
    return "MXFP8";
  return "";
}

std::string algorithm_of(const LayerPlan& layer) {
  if (!weight_float_name(layer).empty()) return block_float_algorithm(layer);
  return layer.weight->is_float8() ? float8_algorithm(layer) : integer_algorithm(layer);
}

// Rows 2r and 2r + 1 share a row of bytes.
at::Tensor packed_rows(const at::Tensor& codes) {
  const at::Tensor u = codes.to(at::kInt).bitwise_and(15).reshape({-1, 2, codes.size(1)});
  return u.select(1, 0).bitwise_or(u.select(1, 1).mul(16)).to(at::kByte);
}

void add_block_floats(const QuantizedWeights& layer, NamedTensors& tensors) {
  if (!layer.outer_scale) {
    tensors[layer.name + ".weight_scale"] = scale_bytes(layer);
    return;
  }
  tensors[layer.name + ".weight"] = packed_nibbles(layer.codes, layer.weight.grid);
  tensors[layer.name + ".weight_scale_2"] = layer.outer_scale->to(at::kFloat).reshape({});
}

json layer_json(const LayerPlan& layer) {
  const std::string algorithm = algorithm_of(layer);
  json entry = {{"quant_algo", algorithm}};
  if (algorithm == "W4A16_AWQ")
    entry.update({{"group_size", layer.weight->group_size},
                  {"has_zero_point", false},
                  {"pre_quant_scale", true}});
  if (is_coded(*layer.weight)) entry["group_size"] = layer.weight->group_size;
  return entry;
}

json tensor_json(const QuantSpec& spec) {
  json entry = {{"dynamic", spec.dynamic},
                {"num_bits", spec.bits},
                {"type", spec.is_float() ? "float" : "int"}};
  if (spec.granularity == Granularity::channel) entry["strategy"] = "channel";
  if (spec.granularity == Granularity::token) entry["strategy"] = "token";
  if (spec.granularity == Granularity::group) entry["group_size"] = spec.group_size;
  return entry;
}

json group_json(const LayerPlan& layer) {
  json group = {{"weights", tensor_json(*layer.weight)}};
  if (layer.input) group["input_activations"] = tensor_json(*layer.input);
  return group;
}

// The layers of each scheme, by what the scheme is.
std::map<std::string, std::vector<const LayerPlan*>> by_scheme(const CheckpointPlan& plan) {
  std::map<std::string, std::vector<const LayerPlan*>> schemes;
  for (const LayerPlan& layer : plan.layers) schemes[layer_json(layer).dump()].push_back(&layer);
  return schemes;
}

json quantization_json(const CheckpointPlan& plan, bool cached) {
  const auto schemes = by_scheme(plan);
  json quantization = {{"quant_algo", "MIXED_PRECISION"}};
  if (schemes.size() == 1) {
    quantization = json::parse(schemes.begin()->first);
  } else {
    for (const LayerPlan& layer : plan.layers)
      quantization["quantized_layers"][layer.name] = layer_json(layer);
  }
  quantization["kv_cache_quant_algo"] = cached ? json("FP8") : json(nullptr);
  quantization["exclude_modules"] = plan.ignore;
  return quantization;
}

}  // namespace

std::string modelopt_refusal(const LayerPlan& layer) {
  if (!algorithm_of(layer).empty()) return "";
  return "it takes symmetric int4 in groups, int8 per channel alone or with calibrated int8 "
         "inputs, "
         "fp8_e4m3 per tensor with calibrated inputs, per channel with inputs per token, or in "
         "blocks of 128 x 128, nvfp4 alone or with inputs in it that are not "
         "dynamic, and mxfp8_e4m3 with inputs in it whose scale_dtype is "
         "e8m0_ceil";
}

NamedTensors modelopt_tensors(const QuantizedWeights& layer) {
  const std::string& name = layer.name;
  NamedTensors tensors{{name + ".weight", layer.codes}, {name + ".weight_scale", layer.scale}};
  switch (layer.weight.granularity) {
    case Granularity::tensor:
      tensors[name + ".weight_scale"] = layer.scale.to(at::kFloat).reshape({});
      break;
    case Granularity::channel:
      tensors[name + ".weight_scale"] = layer.scale.reshape({-1});
      break;
    case Granularity::group:
      if (is_coded(layer.weight)) {
        add_block_floats(layer, tensors);
        break;
      }
      tensors[name + ".weight"] = packed_rows(layer.codes);
      tensors[name + ".pre_quant_scale"] = at::ones({layer.codes.size(1)}, layer.scale.options());
      break;
    default:
      break;
  }
  if (layer.input_scale) tensors[name + ".input_scale"] = layer.input_scale->reshape({});
  return tensors;
}

Documents modelopt_documents(const CheckpointPlan& plan) {
  const bool cached = plan.kv_cache && holds_kv_cache(*plan.kv_cache);
  const json producer = {{"name", "torchqat"}, {"version", QAT_VERSION}};
  const json quantization = quantization_json(plan, cached);
  json config = {{"quant_method", "modelopt"},
                 {"quant_algo", quantization["quant_algo"]},
                 {"ignore", plan.ignore},
                 {"producer", producer}};
  if (quantization.contains("quantized_layers"))
    config["quantized_layers"] = quantization["quantized_layers"];
  if (cached) config["kv_cache_scheme"] = {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}};
  const auto schemes = by_scheme(plan);
  for (const auto& [text, layers] : schemes) {
    json group = group_json(*layers.front());
    group["targets"] = json::array();
    if (schemes.size() == 1)
      group["targets"].push_back("Linear");
    else
      for (const LayerPlan* layer : layers) group["targets"].push_back(layer->name);
    config["config_groups"]["group_" + std::to_string(config["config_groups"].size())] = group;
  }
  return {{"config.json", config.dump()},
          {"hf_quant_config.json",
           json({{"producer", producer}, {"quantization", quantization}}).dump()}};
}

}  // namespace qat
