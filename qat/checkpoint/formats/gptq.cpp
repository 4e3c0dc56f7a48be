#include "qat/checkpoint/formats/gptq.h"

#include <ATen/Functions.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/ops/pack.h"
#include "qat/version.h"

namespace qat {
namespace {

using nlohmann::json;

int bits_of(const QuantSpec& spec) { return spec.bits <= 4 ? spec.bits : 8; }

std::string refusal_of(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8() || layer.input) return "it takes integer weights and float inputs alone";
  if (weight.granularity == Granularity::block)
    return "weights must have granularity group, channel or tensor, but have block";
  if (layer.in_features % 32 != 0 || layer.out_features % 32 != 0)
    return "its sides must be multiples of 32, but are " + std::to_string(layer.out_features) +
           " and " + std::to_string(layer.in_features);
  return "";
}

// `offset` is what is taken off each zero point.
NamedTensors tensors_of(const QuantizedWeights& layer, int64_t offset) {
  const int bits = bits_of(layer.weight);
  const int64_t cols = layer.codes.size(1), group = cols / layer.scale.size(1);
  const at::Tensor scale = per_group(layer.scale, layer, group);
  const at::Tensor zero = layer.zero_point ? per_group(*layer.zero_point, layer, group)
                                           : at::zeros_like(scale, at::kChar);
  return {
      {layer.name + ".qweight", pack(layer.codes, bits).t().contiguous()},
      {layer.name + ".qzeros", pack(zero.t().contiguous().sub(offset), bits)},
      {layer.name + ".scales", scale.t().contiguous()},
      {layer.name + ".g_idx", at::arange(cols).div(group, "floor").to(at::kInt)},
  };
}

std::string escaped(const std::string& name) {
  std::string text;
  for (const char c : name) text += c == '.' ? std::string("\\.") : std::string(1, c);
  return text;
}

json scheme_json(const QuantSpec& spec) {
  return {{"bits", bits_of(spec)}, {"group_size", group_size_of(spec)}, {"sym", spec.symmetric()}};
}

// Layers that differ from most are named one by one: readers take the rest for what the head of
// the configuration says.
json exceptions(const CheckpointPlan& plan, const json& common) {
  json rules = json::object();
  for (const LayerPlan& layer : plan.layers) {
    const json scheme = scheme_json(*layer.weight);
    if (scheme != common) rules["+:^" + escaped(layer.name) + "$"] = scheme;
  }
  for (const std::string& name : plan.ignore)
    if (name != "lm_head") rules["-:^" + escaped(name) + "$"] = json::object();
  return rules;
}

json most_common_scheme(const std::vector<LayerPlan>& layers) {
  std::map<std::string, int64_t> counts;
  std::string best;
  for (const LayerPlan& layer : layers) {
    const std::string text = scheme_json(*layer.weight).dump();
    counts[text] += layer.in_features * layer.out_features;
    if (best.empty() || counts[text] > counts[best]) best = text;
  }
  return json::parse(best);
}

Documents documents_of(const CheckpointPlan& plan, const char* version) {
  json config = most_common_scheme(plan.layers);
  const json rules = exceptions(plan, config);
  bool head = false;
  for (const LayerPlan& layer : plan.layers) head = head || layer.name == "lm_head";
  config.update({{"quant_method", "gptq"},
                 {"checkpoint_format", version},
                 {"format", version},
                 {"desc_act", false},
                 {"static_groups", false},
                 {"true_sequential", true},
                 {"lm_head", head},
                 {"pack_dtype", "int32"},
                 {"meta", {{"quantizer", {"torchqat:" QAT_VERSION}}}}});
  if (!rules.empty()) config["dynamic"] = rules;
  return {{"config.json", config.dump()}, {"quantize_config.json", config.dump()}};
}

}  // namespace

std::string gptq_refusal(const LayerPlan& layer) {
  if (!layer.weight->symmetric()) return "its grid must be symmetric, but is asymmetric";
  return refusal_of(layer);
}
NamedTensors gptq_tensors(const QuantizedWeights& layer) { return tensors_of(layer, 1); }
Documents gptq_documents(const CheckpointPlan& plan) { return documents_of(plan, "gptq"); }

std::string gptq_v2_refusal(const LayerPlan& layer) { return refusal_of(layer); }
NamedTensors gptq_v2_tensors(const QuantizedWeights& layer) { return tensors_of(layer, 0); }
Documents gptq_v2_documents(const CheckpointPlan& plan) { return documents_of(plan, "gptq_v2"); }

}  // namespace qat
