#include "qat/checkpoint/formats/compressed_tensors.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/ops/pack.h"

namespace qat {
namespace {

using nlohmann::json;

bool has_int8_inputs(const LayerPlan& layer) { return layer.input && !layer.input->is_float8(); }

std::string refusal_of_int8_inputs(const QuantSpec& weight, const QuantSpec& input) {
  const bool eight = weight.bits == 8;
  if (input.granularity == Granularity::group)
    return "int8 inputs have a scale per token or one for all, but these have one per group";
  if (input.bits != 8 || (!eight && weight.bits != 4))
    return "quantized inputs need int8 or int4 weights and int8 inputs, but they are int" +
           std::to_string(weight.bits) + " and int" + std::to_string(input.bits);
  if (!weight.symmetric()) return "with quantized inputs the weights must be symmetric";
  if (eight && weight.granularity != Granularity::channel &&
      weight.granularity != Granularity::tensor)
    return "with quantized inputs int8 weights must have granularity channel or tensor";
  if (!eight && (!input.dynamic || input.granularity != Granularity::token || !input.symmetric()))
    return "int4 weights go with int8 inputs that are symmetric and dynamic, a scale per token";
  return "";
}

std::string refusal_of_float8_inputs(const QuantSpec& weight, const QuantSpec& input) {
  if (input.grid != Grid::e4m3) return "FP8 weights and inputs must both be fp8_e4m3";
  if (input.granularity == Granularity::group && weight.granularity != Granularity::block)
    return "FP8 inputs in groups go with FP8 weights in blocks";
  if (weight.is_float8()) return "";
  if (weight.bits != 4 || !weight.symmetric())
    return "with FP8 inputs the weights must be fp8_e4m3 or symmetric int4";
  return "";
}

const char* format_of(const LayerPlan& layer) {
  if (layer.weight->is_float8()) return "float-quantized";
  return has_int8_inputs(layer) ? "int-quantized" : "pack-quantized";
}

json scheme_json(const QuantSpec& spec, const char* strategy, int bits) {
  json scheme = {{"num_bits", bits},
                 {"type", spec.is_float8() ? "float" : "int"},
                 {"symmetric", spec.symmetric()},
                 {"strategy", strategy},
                 {"dynamic", spec.dynamic}};
  if (spec.granularity == Granularity::group) scheme["group_size"] = spec.group_size;
  if (spec.granularity == Granularity::block) scheme["block_structure"] = spec.block;
  return scheme;
}

json group_json(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  json group = {{"weights", scheme_json(weight, name_of(weight.granularity), stored_bits(weight))},
                {"input_activations", nullptr},
                {"output_activations", nullptr},
                {"format", format_of(layer)}};
  if (layer.input)
    group["input_activations"] =
        scheme_json(*layer.input, name_of(layer.input->granularity), layer.input->bits);
  return group;
}

json cache_json(const QuantSpec& spec) {
  const char* strategy = spec.granularity == Granularity::head ? "attn_head" : "tensor";
  return scheme_json(spec, strategy, 8);
}

// Scales [out, groups] or [out, 1]; a single one is [1].
at::Tensor scale_of(const QuantizedWeights& layer) {
  return layer.weight.granularity == Granularity::tensor ? layer.scale.reshape({1}) : layer.scale;
}

void add_packed(const QuantizedWeights& layer, NamedTensors& tensors) {
  const int bits = stored_bits(layer.weight);
  tensors[layer.name + ".weight_packed"] = pack(layer.codes, bits);
  tensors[layer.name + ".weight_shape"] = at::tensor(layer.codes.sizes(), at::kLong);
  if (layer.zero_point) {
    // Packed down the rows of each group column, not along them.
    tensors[layer.name + ".weight_zero_point"] =
        pack(layer.zero_point->t().contiguous(), bits).t().contiguous();
  }
}

// Layers that share a scheme share a config group; with a single group it applies to every Linear
// that is not ignored, as readers expect.
json config_groups(const std::vector<LayerPlan>& layers) {
  std::map<std::string, std::pair<json, std::vector<std::string>>> by_scheme;
  for (const LayerPlan& layer : layers) {
    json group = group_json(layer);
    auto& entry = by_scheme[group.dump()];
    entry.first = std::move(group);
    entry.second.push_back(layer.name);
  }
  json groups = json::object();
  for (auto& [text, entry] : by_scheme) {
    entry.first["targets"] =
        by_scheme.size() == 1 ? std::vector<std::string>{"Linear"} : entry.second;
    groups["group_" + std::to_string(groups.size())] = entry.first;
  }
  return groups;
}

std::string global_format(const json& groups) {
  std::string format;
  for (const auto& group : groups) {
    if (!format.empty() && format != group["format"]) return "mixed-precision";
    format = group["format"];
  }
  return format;
}

}  // namespace

std::string compressed_tensors_refusal(const LayerPlan& layer) {
  // transformers reads experts by a way of its own, which knows no zero points, and vLLM has kernels
  // for these alone.
  if (layer.type == "Experts" && !layer.weight->is_float8() &&
      (!layer.weight->symmetric() || (layer.weight->bits != 4 && layer.weight->bits != 8)))
    return "experts must have symmetric weights of int4 or int8, or fp8_e4m3";
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8() && weight.grid != Grid::e4m3)
    return "FP8 weights and inputs must both be fp8_e4m3";
  if (weight.granularity == Granularity::block && !weight.is_float8())
    return "integer weights must have granularity tensor, channel or group, but have block";
  if (weight.granularity == Granularity::tensor && !weight.symmetric())
    return "zero points are those of groups or channels, but there is one for the whole weight";
  if (has_int8_inputs(layer)) {
    if (weight.is_float8()) return "FP8 weights and inputs must both be fp8_e4m3";
    return refusal_of_int8_inputs(weight, *layer.input);
  }
  return layer.input ? refusal_of_float8_inputs(weight, *layer.input) : "";
}

bool holds_kv_cache(const KvCacheSpec& spec) {
  return spec.key == spec.value && spec.key.grid == Grid::e4m3 && !spec.key.dynamic &&
         spec.recent == 0 && spec.first == 0;
}

NamedTensors compressed_tensors_of(const QuantizedWeights& layer) {
  const LayerPlan plan = plan_of(layer);
  NamedTensors tensors{{layer.name + ".weight_scale", scale_of(layer)}};
  if (std::string(format_of(plan)) == "pack-quantized")
    add_packed(layer, tensors);
  else
    tensors[layer.name + ".weight"] = layer.codes;
  if (layer.input_scale) tensors[layer.name + ".input_scale"] = *layer.input_scale;
  if (layer.input_zero_point) tensors[layer.name + ".input_zero_point"] = *layer.input_zero_point;
  return tensors;
}

Documents compressed_tensors_documents(const CheckpointPlan& plan) {
  const json groups = config_groups(plan.layers);
  const bool cached = plan.kv_cache && holds_kv_cache(*plan.kv_cache);
  const json config = {
      {"quant_method", "compressed-tensors"},
      {"version", "0.15.0"},
      {"format", global_format(groups)},
      {"quantization_status", "compressed"},
      {"global_compression_ratio", nullptr},
      {"config_groups", groups},
      {"ignore", plan.ignore},
      {"kv_cache_scheme", cached ? cache_json(plan.kv_cache->key) : json(nullptr)}};
  return {{"config.json", config.dump()}};
}

}  // namespace qat
