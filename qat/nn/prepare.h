#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/ops/api.h"
#include "qat/recipe/plan.h"

namespace qat {

// What `recipe` means for `module`: per layer the specs, and the stages of the schedule. Throws
// RecipeError for a rule that matches no layer and for a group that does not divide one.
QAT_API Plan plan(const torch::nn::Module& module, const Recipe& recipe);

// Puts a plan into the torch::nn::Linear, Conv2d and Embedding layers of a module tree, however
// they are nested, shared or held; decides nothing. Parameters keep their names and tensors, so
// optimizers that were built before go on. Without a Schedule the layers train at their exported
// widths.
//
// `method` is what calibrate() will do to the weights, a method or all of a recipe's section
// `initialize`: scales begin by range for rtn, else by search. Call it once a module is where and
// in the dtype that it is trained in, and do not clone() it afterwards.
//
// Throws std::invalid_argument, naming the layer, for one that the module lacks or that is prepared
// already, for a weight that is not finite, for an input of a layer that is no drop-in (layers.h),
// and for an embedding whose weight another layer shares that is not quantized alike. Nothing is
// changed then.
QAT_API void prepare(torch::nn::Module& module, const Plan& plan, const Initialize& initialize);
QAT_API void prepare(torch::nn::Module& module, const Plan& plan,
                     const std::string& method = "mse");
// The same for what the recipe means for the module.
QAT_API void prepare(torch::nn::Module& module, const Recipe& recipe);

// Two groups for an optimizer: the weights, and the learned scales, which have a learning rate of
// their own and no weight decay. Each tensor once, however many layers share it. Empty groups are
// left out. The options are of the optimizer's type.
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> parameter_groups(const torch::nn::Module& module,
                                                                const Options& options,
                                                                double scale_learning_rate);

// The quantized weights of a prepared module, in model order, their scales in `dtype`, by default
// that of each weight. Throws std::invalid_argument where a schedule has not ended, a weight is not
// finite, or `dtype` cannot hold the scales exactly.
QAT_API std::vector<QuantizedWeights> convert(const torch::nn::Module& module,
                                              std::optional<at::ScalarType> dtype = std::nullopt);

// Parameters that training adds: learned scales and zero points, each once; and all others.
struct QAT_API Parameters {
  std::vector<at::Tensor> weights, scales;
};
QAT_API Parameters parameters_of(const torch::nn::Module& module);

template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> parameter_groups(const torch::nn::Module& module,
                                                                const Options& options,
                                                                double scale_learning_rate) {
  const Parameters parameters = parameters_of(module);
  Options for_scales = options;
  for_scales.lr(scale_learning_rate);
  for_scales.weight_decay(0.0);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  if (!parameters.weights.empty())
    groups.emplace_back(parameters.weights, std::make_unique<Options>(options));
  if (!parameters.scales.empty())
    groups.emplace_back(parameters.scales, std::make_unique<Options>(for_scales));
  return groups;
}

}  // namespace qat
