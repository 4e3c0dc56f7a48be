#include "qat/checkpoint/formats/compressed_tensors.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/block_floats.h"
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

// What compressed-tensors calls the layout of a number type in blocks.
const std::map<std::string, const char*> kBlockFormats{{"nvfp4", "nvfp4-pack-quantized"},
                                                       {"mxfp4", "mxfp4-pack-quantized"},
                                                       {"mxfp6_e2m3", "mxfp6-pack-quantized"},
                                                       {"mxfp8_e4m3", "mxfp8-quantized"}};

bool is_fp8_in_groups(const QuantSpec& input, int64_t group_size) {
  return input.grid == Grid::e4m3 && !is_coded(input) && input.dynamic &&
         input.granularity == Granularity::group && input.group_size == group_size;
}

// Engines find the scales of inputs in blocks by a rule of their own.
std::string refusal_of_rule(const QuantSpec& input, ScaleCode rule, const char* name) {
  if (input.scale.code == rule) return "";
  return "engines round the scales of such inputs by the rule " + std::string(name) +
         ", so that they need scale_dtype: " + name + ", but they have " + scale_name(input.scale);
}

std::string refusal_of_block_floats(const LayerPlan& layer) {
  const std::string weight = weight_float_name(layer), input = input_float_name(layer);
  if (weight.empty()) return "inputs in " + input + " go with weights in such a type";
  const int64_t columns = weight == "nvfp4" ? 16 : 32;
  if (layer.in_features % columns != 0)
    return "blocks of " + weight + " have " + std::to_string(columns) + " columns, but there are " +
           std::to_string(layer.in_features);
  if (layer.type == "Experts") return "experts must be integers or fp8_e4m3";
  if (!layer.input) return "";
  if (weight == "nvfp4" && input == "nvfp4")
    return layer.input->dynamic ? "engines take the outer scale of inputs from the checkpoint, so "
                                  "that they need dynamic: false, but it is found in each call"
                                : "";
  if (weight == "nvfp4") return "nvfp4 weights go with inputs in nvfp4 or none";
  if (weight == "mxfp4" && input == "mxfp4")
    return refusal_of_rule(*layer.input, ScaleCode::e8m0_even, "e8m0_even");
  if (weight == "mxfp4" && is_fp8_in_groups(*layer.input, 128)) return "";
  if (weight != "mxfp4" && input == "mxfp8_e4m3")
    return refusal_of_rule(*layer.input, ScaleCode::e8m0_ceil, "e8m0_ceil");
  return std::string(weight == "mxfp4" ? "mxfp4 weights go with inputs in mxfp4, in dynamic "
                                         "fp8_e4m3 in groups of 128"
                                       : weight + " weights go with inputs in mxfp8_e4m3") +
         " or none";
}

const char* format_of(const LayerPlan& layer) {
  if (const auto found = kBlockFormats.find(weight_float_name(layer)); found != kBlockFormats.end())
    return found->second;
  if (layer.weight->is_float8()) return "float-quantized";
  return has_int8_inputs(layer) ? "int-quantized" : "pack-quantized";
}

json scheme_json(const QuantSpec& spec, const char* strategy, int bits, bool is_input = false) {
  json scheme = {{"num_bits", bits},
                 {"type", spec.is_float8() ? "float" : "int"},
                 {"symmetric", spec.symmetric()},
                 {"strategy", strategy},
                 {"dynamic", spec.dynamic}};
  if (spec.granularity == Granularity::group) scheme["group_size"] = spec.group_size;
  if (spec.granularity == Granularity::block) scheme["block_structure"] = spec.block;
  if (is_coded(spec)) {
    const char* code = spec.scale.has_outer() ? "torch.float8_e4m3fn" : "torch.uint8";
    scheme.update({{"type", "float"}, {"scale_dtype", code}, {"zp_dtype", code}});
    if (spec.scale.has_outer()) scheme["strategy"] = "tensor_group";
    if (spec.scale.has_outer() && is_input)
      scheme.update({{"dynamic", "local"}, {"observer", "static_minmax"}});
  }
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
        scheme_json(*layer.input, name_of(layer.input->granularity), layer.input->bits, true);
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

// A scale for 16 or 32 columns is a byte; NVFP4's are divided by one number for the whole weight.
void add_block_floats(const QuantizedWeights& layer, NamedTensors& tensors) {
  const Grid grid = layer.weight.grid;
  const std::string name = layer.name + ".weight";
  if (grid == Grid::e4m3)
    tensors[name] = layer.codes;
  else
    tensors[name + "_packed"] =
        grid == Grid::e2m1 ? packed_nibbles(layer.codes, grid) : packed_sextets(layer.codes, grid);
  tensors[name + "_scale"] = layer.outer_scale ? layer.scale : scale_bytes(layer);
  if (layer.outer_scale)
    tensors[name + "_global_scale"] = layer.outer_scale->to(at::kFloat).reciprocal().reshape({1});
  if (layer.input_scale)
    tensors[layer.name + ".input_global_scale"] = layer.input_scale->reciprocal();
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
  if (!weight_float_name(layer).empty() || !input_float_name(layer).empty())
    return refusal_of_block_floats(layer);
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
  NamedTensors tensors;
  if (is_coded(layer.weight)) {
    add_block_floats(layer, tensors);
    return tensors;
  }
  tensors[layer.name + ".weight_scale"] = scale_of(layer);
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
