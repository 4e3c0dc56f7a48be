#include "qat/nn/module_layers.h"

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <set>

#include "qat/nn/layer_quantizer.h"

namespace qat {
namespace {

template <typename Impl>
bool append_if(const std::string& name, const char* type,
               const std::shared_ptr<torch::nn::Module>& module, std::vector<ModuleLayer>& layers) {
  auto* layer = dynamic_cast<Impl*>(module.get());
  if (layer) layers.push_back({name, type, module, &layer->weight});
  return layer != nullptr;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::shared_ptr<LayerQuantizer> ModuleLayer::quantizer() const { return quantizer_of(*module); }

std::vector<ModuleLayer> module_layers(const torch::nn::Module& module) {
  std::vector<ModuleLayer> layers;
  std::set<const torch::nn::Module*> seen;
  // Without the module itself, which need not be held by a shared_ptr.
  for (const auto& item : module.named_modules("", /*include_self=*/false)) {
    if (!seen.insert(item.value().get()).second) continue;
    append_if<torch::nn::LinearImpl>(item.key(), "Linear", item.value(), layers) ||
        append_if<torch::nn::Conv2dImpl>(item.key(), "Conv2d", item.value(), layers) ||
        append_if<torch::nn::EmbeddingImpl>(item.key(), "Embedding", item.value(), layers);
  }
  return layers;
}

std::vector<ModuleLayer> prepared_layers(const torch::nn::Module& module) {
  std::vector<ModuleLayer> layers = module_layers(module);
  std::erase_if(layers, [](const ModuleLayer& layer) { return !layer.quantizer(); });
  return layers;
}

namespace {

// Matrices that are no layer's weight: programs multiply them by themselves.
void append_other_weights(const torch::nn::Module& module, const std::vector<ModuleLayer>& layers,
                          std::vector<LayerInfo>& infos) {
  for (const auto& item : module.named_parameters()) {
    const at::Tensor& weight = item.value();
    if (weight.dim() < 2 || weight.numel() == 0) continue;
    const bool known = std::any_of(layers.begin(), layers.end(), [&](const ModuleLayer& layer) {
      return layer.weight->is_same(weight) || item.key().rfind(layer.name + ".", 0) == 0;
    });
    if (known) continue;
    LayerInfo info{item.key(), "Parameter", weight.size(-1), weight.size(-2)};
    info.matrices = weight.numel() / (weight.size(-1) * weight.size(-2));
    info.plannable = false;
    info.why = "parameters that are no layer's weight";
    infos.push_back(info);
  }
}

}  // namespace

std::vector<LayerInfo> plannable_layers(const torch::nn::Module& module) {
  const std::vector<ModuleLayer> layers = module_layers(module);
  std::set<const void*> embeddings, multiplied;
  for (const ModuleLayer& layer : layers) {
    const void* weight = layer.weight->unsafeGetTensorImpl();
    (layer.type == "Embedding" ? embeddings : multiplied).insert(weight);
  }
  std::vector<LayerInfo> infos;
  for (const ModuleLayer& layer : layers) {
    const void* weight = layer.weight->unsafeGetTensorImpl();
    const int64_t rows = layer.weight->size(0);
    LayerInfo info{layer.name, layer.type, layer.weight->numel() / std::max<int64_t>(1, rows),
                   rows};
    if (layer.name == "lm_head" || ends_with(layer.name, ".lm_head"))
      info.why = "output head";
    else if (embeddings.count(weight))
      info.why = layer.type == "Embedding" ? "embedding" : "tied to an embedding";
    info.by_name_only = !info.why.empty();
    // Of an embedding and what is tied to it, the latter multiplies and counts.
    const bool tied = layer.type == "Embedding" && multiplied.count(weight) > 0;
    info.multiplied = !tied && multiplied.count(weight) > 0;
    info.counted = !tied;
    infos.push_back(info);
  }
  append_other_weights(module, layers, infos);
  return infos;
}

}  // namespace qat
