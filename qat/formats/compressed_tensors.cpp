#include "qat/formats/compressed_tensors.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "ops/pack.h"

namespace qat {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const QuantizedWeights& layer, const std::string& why) {
  throw std::invalid_argument("compressed-tensors cannot hold " + layer.name + ": " + why + ".");
}

const char* format_of(const QuantizedWeights& layer) {
  if (layer.weight.is_float8()) {
    if (layer.weight.grid != Grid::e4m3 || (layer.input && layer.input->grid != Grid::e4m3))
      refuse(layer, "FP8 weights and inputs must both be fp8_e4m3");
    return "float-quantized";
  }
  if (!layer.input) return "pack-quantized";
  if (layer.weight.bits != 8 || layer.input->bits != 8)
    refuse(layer, "quantized inputs need int8 weights and int8 inputs, but they are int" +
                      std::to_string(layer.weight.bits) + " and int" +
                      std::to_string(layer.input->bits));
  if (!layer.weight.symmetric())
    refuse(layer, "with quantized inputs the weights must be symmetric");
  if (layer.weight.granularity != Granularity::channel &&
      layer.weight.granularity != Granularity::tensor)
    refuse(layer, "with quantized inputs the weights must have granularity channel or tensor");
  return "int-quantized";
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

json group_json(const QuantizedWeights& layer) {
  if (layer.weight.granularity == Granularity::block && !layer.weight.is_float8())
    refuse(layer, "integer weights must have granularity tensor, channel or group, but have block");
  json group = {{"weights", scheme_json(layer.weight, name_of(layer.weight.granularity),
                                        stored_bits(layer.weight))},
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
  tensors[layer.name + ".weight_scale"] = scale_of(layer);
  tensors[layer.name + ".weight_shape"] = at::tensor(layer.codes.sizes(), at::kLong);
  if (layer.zero_point) {
    // Packed down the rows of each group column, not along them.
    tensors[layer.name + ".weight_zero_point"] =
        pack(layer.zero_point->t().contiguous(), bits).t().contiguous();
  }
}

void add_bytes(const QuantizedWeights& layer, NamedTensors& tensors) {
  tensors[layer.name + ".weight"] = layer.codes;
  tensors[layer.name + ".weight_scale"] = scale_of(layer);
  if (layer.input_scale) tensors[layer.name + ".input_scale"] = *layer.input_scale;
  if (layer.input_zero_point) tensors[layer.name + ".input_zero_point"] = *layer.input_zero_point;
}

// Layers that share a scheme share a config group; with a single group it applies to every Linear
// that is not ignored, as readers expect.
json config_groups(const std::vector<QuantizedWeights>& layers) {
  std::map<std::string, std::pair<json, std::vector<std::string>>> by_scheme;
  for (const QuantizedWeights& layer : layers) {
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

bool holds_kv_cache(const KvCacheSpec& spec) {
  return spec.key == spec.value && spec.key.grid == Grid::e4m3 && !spec.key.dynamic &&
         spec.recent == 0 && spec.first == 0;
}

NamedTensors compressed_tensors_of(const QuantizedWeights& layer) {
  NamedTensors tensors;
  if (layer.input || layer.weight.is_float8())
    add_bytes(layer, tensors);
  else
    add_packed(layer, tensors);
  return tensors;
}

std::string compressed_tensors_config(const std::vector<QuantizedWeights>& layers,
                                      const std::vector<std::string>& ignore,
                                      const std::optional<KvCacheSpec>& kv_cache) {
  if (layers.empty())
    throw std::invalid_argument(
        "compressed-tensors needs at least one quantized layer, but there is none.");
  const json groups = config_groups(layers);
  const bool cached = kv_cache && holds_kv_cache(*kv_cache);
  const json config = {{"quant_method", "compressed-tensors"},
                       {"version", "0.15.0"},
                       {"format", global_format(groups)},
                       {"quantization_status", "compressed"},
                       {"global_compression_ratio", nullptr},
                       {"config_groups", groups},
                       {"ignore", ignore},
                       {"kv_cache_scheme", cached ? cache_json(kv_cache->key) : json(nullptr)}};
  return config.dump(2);
}

CompressedTensors to_compressed_tensors(const std::vector<QuantizedWeights>& layers,
                                        const std::vector<std::string>& ignore,
                                        const std::optional<KvCacheSpec>& kv_cache) {
  CompressedTensors result{{}, compressed_tensors_config(layers, ignore, kv_cache)};
  for (const QuantizedWeights& layer : layers) result.tensors.merge(compressed_tensors_of(layer));
  return result;
}

std::vector<std::string> fusion_problems(const std::vector<QuantizedWeights>& layers,
                                         const std::vector<std::string>& ignore) {
  static const std::vector<std::vector<std::string>> kFused{{"q_proj", "k_proj", "v_proj"},
                                                            {"gate_proj", "up_proj"}};
  std::map<std::string, std::string> schemes;
  for (const auto& layer : layers) schemes[layer.name] = group_json(layer).dump();
  for (const auto& name : ignore) schemes[name] = "float";
  std::vector<std::string> problems;
  for (const auto& [name, scheme] : schemes) {
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos) continue;
    const std::string parent = name.substr(0, dot + 1), leaf = name.substr(dot + 1);
    for (const auto& shards : kFused) {
      if (leaf != shards.front()) continue;
      for (const auto& shard : shards) {
        const auto other = schemes.find(parent + shard);
        if (other != schemes.end() && other->second != scheme)
          problems.push_back(name + " and " + other->first +
                             " must share one scheme, because engines fuse them, but they differ.");
      }
    }
  }
  return problems;
}

}  // namespace qat
