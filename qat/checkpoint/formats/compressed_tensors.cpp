#include "qat/checkpoint/formats/compressed_tensors.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/ops/pack.h"

namespace qat {
namespace {

using nlohmann::json;

// The width that codes are stored in: their own, or one that a word is a multiple of.
enum class Widths { dense, padded };

int bits_of(const QuantSpec& spec, Widths widths) {
  return widths == Widths::dense ? spec.bits : stored_bits(spec);
}

// What compressed-tensors calls the layout of a number type in blocks.
const std::map<std::string, const char*> kBlockFormats{{"nvfp4", "nvfp4-pack-quantized"},
                                                       {"mxfp4", "mxfp4-pack-quantized"},
                                                       {"mxfp6_e2m3", "mxfp6-pack-quantized"},
                                                       {"mxfp8_e4m3", "mxfp8-quantized"}};

const char* format_of(const LayerPlan& layer) {
  if (const auto found = kBlockFormats.find(weight_float_name(layer)); found != kBlockFormats.end())
    return found->second;
  if (layer.weight->is_float8()) return "float-quantized";
  return has_int8_inputs(layer) ? "int-quantized" : "pack-quantized";
}

int64_t row_bits_of(const QuantSpec& weight, const std::optional<QuantSpec>& input, Widths widths,
                    int64_t count) {
  if (is_coded(weight)) return count * stored_bits(weight);
  if (std::string(format_of({"", 0, 0, weight, input})) != "pack-quantized") return count * 8;
  return (count * bits_of(weight, widths) + 31) / 32 * 32;
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

json group_json(const LayerPlan& layer, Widths widths) {
  const QuantSpec& weight = *layer.weight;
  json group = {
      {"weights", scheme_json(weight, name_of(weight.granularity), bits_of(weight, widths))},
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

// As many words as have codes in them, of a stream that pack ends with its run.
at::Tensor packed_words_of(const at::Tensor& codes, int bits) {
  return pack(codes, bits).slice(-1, 0, (codes.size(-1) * bits + 31) / 32).contiguous();
}

void add_packed(const QuantizedWeights& layer, int bits, NamedTensors& tensors) {
  tensors[layer.name + ".weight_packed"] = packed_words_of(layer.codes, bits);
  tensors[layer.name + ".weight_shape"] = at::tensor(layer.codes.sizes(), at::kLong);
  if (layer.zero_point) {
    // Packed down the rows of each group column, not along them.
    tensors[layer.name + ".weight_zero_point"] =
        packed_words_of(layer.zero_point->t().contiguous(), bits).t().contiguous();
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
json config_groups(const std::vector<LayerPlan>& layers, Widths widths) {
  std::map<std::string, std::pair<json, std::vector<std::string>>> by_scheme;
  for (const LayerPlan& layer : layers) {
    json group = group_json(layer, widths);
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

// The least version of the library that reads the groups: before 0.18 widths that a word is no
// multiple of were packed in other ways.
const char* version_of(const json& groups) {
  for (const auto& group : groups)
    if (group["format"] == "pack-quantized" && 32 % group["weights"]["num_bits"].get<int>() != 0)
      return "0.18.0";
  return "0.15.0";
}

std::string global_format(const json& groups) {
  std::string format;
  for (const auto& group : groups) {
    if (!format.empty() && format != group["format"]) return "mixed-precision";
    format = group["format"];
  }
  return format;
}

NamedTensors tensors_of(const QuantizedWeights& layer, Widths widths) {
  const LayerPlan plan = plan_of(layer);
  NamedTensors tensors;
  if (is_coded(layer.weight)) {
    add_block_floats(layer, tensors);
    return tensors;
  }
  tensors[layer.name + ".weight_scale"] = scale_of(layer);
  if (std::string(format_of(plan)) == "pack-quantized")
    add_packed(layer, bits_of(layer.weight, widths), tensors);
  else
    tensors[layer.name + ".weight"] = layer.codes;
  if (layer.input_scale) tensors[layer.name + ".input_scale"] = *layer.input_scale;
  if (layer.input_zero_point) tensors[layer.name + ".input_zero_point"] = *layer.input_zero_point;
  return tensors;
}

Documents documents_of(const CheckpointPlan& plan, Widths widths) {
  const json groups = config_groups(plan.layers, widths);
  const bool cached = plan.kv_cache && holds_kv_cache(*plan.kv_cache);
  const json config = {
      {"quant_method", "compressed-tensors"},
      {"version", version_of(groups)},
      {"format", global_format(groups)},
      {"quantization_status", "compressed"},
      {"global_compression_ratio", nullptr},
      {"config_groups", groups},
      {"ignore", plan.ignore},
      {"kv_cache_scheme", cached ? cache_json(plan.kv_cache->key) : json(nullptr)}};
  return {{"config.json", config.dump()}};
}

}  // namespace

bool holds_kv_cache(const KvCacheSpec& spec) {
  return spec.key == spec.value && spec.key.grid == Grid::e4m3 && !spec.key.dynamic &&
         spec.recent == 0 && spec.first == 0;
}

int64_t compressed_row_bits(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                            int64_t count) {
  return row_bits_of(weight, input, Widths::padded, count);
}

int64_t dense_compressed_row_bits(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                                  int64_t count) {
  return row_bits_of(weight, input, Widths::dense, count);
}

NamedTensors compressed_tensors_of(const QuantizedWeights& layer) {
  return tensors_of(layer, Widths::padded);
}
Documents compressed_tensors_documents(const CheckpointPlan& plan) {
  return documents_of(plan, Widths::padded);
}

NamedTensors dense_compressed_tensors_of(const QuantizedWeights& layer) {
  return tensors_of(layer, Widths::dense);
}
Documents dense_compressed_tensors_documents(const CheckpointPlan& plan) {
  return documents_of(plan, Widths::dense);
}

}  // namespace qat
