#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/plan.h"

namespace qat {

class LayerQuantizer;

// A layer of a module tree that can be quantized: a torch::nn::Linear, Conv2d or Embedding, or one
// of the drop-ins for them (layers.h).
struct QAT_API ModuleLayer {
  std::string name;  // in the tree
  std::string type;  // "Linear", "Conv2d" or "Embedding"
  std::shared_ptr<torch::nn::Module> module;
  at::Tensor* weight;  // its public member

  // The quantizer that prepare() put into it, or none.
  std::shared_ptr<LayerQuantizer> quantizer() const;
};

// Every layer of the tree once, in model order, under the first of its names.
QAT_API std::vector<ModuleLayer> module_layers(const torch::nn::Module& module);
// Those that are prepared.
QAT_API std::vector<ModuleLayer> prepared_layers(const torch::nn::Module& module);

// The layers as the planner wants them, and the matrices that are no layer's. Embeddings, heads that share their weight and layers named
// lm_head are marked so that only a rule with their full name reaches them.
QAT_API std::vector<LayerInfo> plannable_layers(const torch::nn::Module& module);

}  // namespace qat
