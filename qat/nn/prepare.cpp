#include "qat/nn/prepare.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

#include "qat/error.h"
#include "qat/nn/layer_quantizer.h"
#include "qat/nn/shared_outer_scale.h"

namespace qat {
namespace {

const LayerPlan* planned(const Plan& plan, const std::string& name) {
  const auto found = std::find_if(plan.layers.begin(), plan.layers.end(),
                                  [&](const LayerPlan& layer) { return layer.name == name; });
  return found == plan.layers.end() ? nullptr : &*found;
}

// A checkpoint has a shared weight once: an embedding that is quantized needs the others to be so.
void check_tied(const std::vector<ModuleLayer>& layers, const Plan& plan) {
  for (const ModuleLayer& layer : layers) {
    const LayerPlan* own = planned(plan, layer.name);
    if (layer.type != "Embedding" || !own || !own->weight) continue;
    for (const ModuleLayer& other : layers) {
      if (!other.weight->is_same(*layer.weight)) continue;
      const LayerPlan* shared = planned(plan, other.name);
      if (!shared || shared->weight != own->weight)
        throw InvalidArgument(layer.name + " and " + other.name +
                              " share a weight, so that all or none of them must be "
                              "quantized, and alike, but the recipe has no such rule for " +
                              other.name + ".");
    }
  }
}

// Gives the layers of each set that share an outer scale the same one.
void share_outer_scales(const Plan& plan, ScaleSearch search,
                        const std::map<std::string, ModuleLayer>& layers) {
  for (const LayerPlan& layer : plan.layers) {
    if (layer.shares.empty() || layer.shares.front() != layer.name) continue;
    std::vector<std::weak_ptr<LayerQuantizer>> members;
    for (const std::string& name : layer.shares) members.push_back(layers.at(name).quantizer());
    const auto shared = std::make_shared<const SharedOuterScale>(members);
    for (const auto& member : members) member.lock()->share(shared, search);
    shared->refresh();  // each under the scales of all
  }
}

}  // namespace

Plan plan(const torch::nn::Module& module, const Recipe& recipe) {
  int64_t parameters = 0;
  for (const at::Tensor& parameter : module.parameters()) parameters += parameter.numel();
  return make_plan(recipe, plannable_layers(module), parameters);
}

void prepare(torch::nn::Module& module, const Plan& plan, const Initialize& initialize) {
  if (plan.kv_cache)
    throw InvalidArgument(
        "kv_cache has no attention layers to go to in a LibTorch program: take the section out of "
        "the recipe, and call qat::KvCache in your attention.");
  std::map<std::string, ModuleLayer> layers;
  const std::vector<ModuleLayer> all = module_layers(module);
  for (const ModuleLayer& layer : all) layers.emplace(layer.name, layer);
  check_tied(all, plan);
  const ScaleSearch search = initialize.search();
  std::vector<std::pair<const ModuleLayer*, std::shared_ptr<LayerQuantizer>>> prepared;
  for (const LayerPlan& layer : plan.layers) {
    const auto found = layers.find(layer.name);
    if (found == layers.end())
      throw InvalidArgument(
          "The plan names " + layer.name +
          ", which must be a Linear, Conv2d or Embedding of the module, but is not.");
    if (found->second.quantizer())
      throw InvalidArgument(layer.name + " must not be prepared already, but is.");
    const bool keeps = layer.weight && !layer.weight->finds_scale() && initialize.keeps_scales();
    // Those that share an outer scale are searched when all of them are there.
    const ScaleSearch begin = layer.shares.empty() ? search : ScaleSearch::minmax;
    prepared.emplace_back(&found->second,
                          std::make_shared<LayerQuantizer>(found->second, layer, begin, keeps));
  }
  for (const auto& [layer, quantizer] : prepared) {
    layer->module->register_module(kQuantizerName, quantizer);
    quantizer->attach(*layer->module);
  }
  share_outer_scales(plan, search, layers);
}

void prepare(torch::nn::Module& module, const Plan& plan, const std::string& method) {
  Initialize initialize;
  const std::string rule = parse_method(method, &initialize);
  if (!rule.empty()) throw InvalidArgument("method " + rule + ", but is " + method + ".");
  prepare(module, plan, initialize);
}

void prepare(torch::nn::Module& module, const Recipe& recipe) {
  prepare(module, plan(module, recipe), recipe.initialize);
}

Parameters parameters_of(const torch::nn::Module& module) {
  Parameters parameters;
  std::set<const void*> seen;
  for (const ModuleLayer& layer : prepared_layers(module)) {
    const auto quantizer = layer.quantizer();
    std::vector<at::Tensor> candidates;
    if (const auto& weight = quantizer->weight())
      candidates = {weight->scale(), weight->zero_point()};
    if (const auto& input = quantizer->input_quantizer())
      candidates.insert(candidates.end(), {input->scale(), input->zero_point()});
    for (const at::Tensor& one : candidates)
      if (one.defined() && one.requires_grad() && seen.insert(one.unsafeGetTensorImpl()).second)
        parameters.scales.push_back(one);
  }
  for (const at::Tensor& one : module.parameters())
    if (one.requires_grad() && seen.insert(one.unsafeGetTensorImpl()).second)
      parameters.weights.push_back(one);
  return parameters;
}

std::vector<QuantizedWeights> convert(const torch::nn::Module& module,
                                      std::optional<at::ScalarType> dtype) {
  std::vector<QuantizedWeights> converted;
  for (const ModuleLayer& layer : prepared_layers(module)) {
    const auto quantizer = layer.quantizer();
    if (quantizer->weight()) converted.push_back(quantizer->convert(layer.name, dtype));
  }
  return converted;
}

}  // namespace qat
