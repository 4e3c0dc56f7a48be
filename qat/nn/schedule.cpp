#include "qat/nn/schedule.h"

#include <ATen/ops/tensor.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <stdexcept>

#include "qat/error.h"
#include "qat/nn/layer_quantizer.h"

namespace qat {
namespace {

template <typename State>
void reset(torch::optim::OptimizerParamState* state,
           std::initializer_list<torch::Tensor& (State::*)()> tensors) {
  auto* own = dynamic_cast<State*>(state);
  if (!own) return;
  for (const auto tensor : tensors)
    if (torch::Tensor& one = (own->*tensor)(); one.defined()) one.zero_();
  if constexpr (requires { own->step(0); }) own->step(0);
}

// All of it: moments that begin at zero, but late in the count of steps by which Adam corrects for
// that, would make steps several times too long.
void reset_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  using namespace torch::optim;
  if (!parameter.defined()) return;
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  if (found == optimizer.state().end()) return;
  OptimizerParamState* state = found->second.get();
  reset<AdamParamState>(state, {&AdamParamState::exp_avg, &AdamParamState::exp_avg_sq,
                                &AdamParamState::max_exp_avg_sq});
  reset<AdamWParamState>(state, {&AdamWParamState::exp_avg, &AdamWParamState::exp_avg_sq,
                                 &AdamWParamState::max_exp_avg_sq});
  reset<AdagradParamState>(state, {&AdagradParamState::sum});
  reset<RMSpropParamState>(state, {&RMSpropParamState::square_avg, &RMSpropParamState::grad_avg,
                                   &RMSpropParamState::momentum_buffer});
  reset<SGDParamState>(state, {&SGDParamState::momentum_buffer});
}

}  // namespace

Schedule::Schedule(torch::nn::Module& module, const Recipe& recipe, int64_t total_steps,
                   torch::optim::Optimizer* optimizer)
    : module_(module),
      bits_(recipe.schedule, recipe.train.freeze_observers, total_steps),
      optimizer_(optimizer) {
  if (prepared_layers(module).empty())
    throw InvalidArgument("The module must be prepared first, with qat::prepare(module, recipe).");
  apply(recipe.initialize.search());
}

bool Schedule::step() {
  const int64_t before = stage();
  ++step_;
  apply(ScaleSearch::mse);
  return stage() != before;
}

void Schedule::finish() {
  step_ = std::max(step_, total_steps());
  apply(ScaleSearch::mse);
}

void Schedule::apply(ScaleSearch search, bool derive) {
  const std::vector<ModuleLayer> layers = prepared_layers(module_);
  for (const ModuleLayer& layer : layers) {
    const auto quantizer = layer.quantizer();
    const auto& weight = quantizer->weight();
    auto& input = quantizer->input_quantizer();
    const std::vector<at::Tensor> changed = quantizer->set_bits(
        weight ? bits_.weight_bits(step_, weight->spec().bits) : kFloat,
        input ? bits_.input_bits(step_, input->spec().bits) : kFloat, search, derive);
    if (input) input->set_observing(bits_.observing(step_));
    if (!optimizer_) continue;
    for (const at::Tensor& parameter : changed) reset_state(*optimizer_, parameter);
  }
  // Layers that share an outer scale are rounded under the scales of all.
  for (const ModuleLayer& layer : layers) layer.quantizer()->refresh();
}

void Schedule::save(torch::serialize::OutputArchive& archive) const {
  archive.write("step", at::tensor(step_, at::kLong));
  archive.write("total_steps", at::tensor(total_steps(), at::kLong));
}

void Schedule::load(torch::serialize::InputArchive& archive) {
  at::Tensor step, total;
  archive.read("step", step);
  archive.read("total_steps", total);
  if (total.item<int64_t>() != total_steps())
    throw InvalidArgument("The schedule must have the length it was saved with, " +
                          std::to_string(total.item<int64_t>()) + " steps, but has " +
                          std::to_string(total_steps()) + ".");
  step_ = step.item<int64_t>();
  apply(ScaleSearch::mse, /*derive=*/false);
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const Schedule& schedule) {
  schedule.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                           Schedule& schedule) {
  schedule.load(archive);
  return archive;
}

}  // namespace qat
