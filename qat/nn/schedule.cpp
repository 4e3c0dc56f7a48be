#include "qat/nn/schedule.h"

#include <ATen/ops/tensor.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <stdexcept>

#include "qat/nn/layer_quantizer.h"

namespace qat {
namespace {

template <typename State>
void zero(torch::optim::OptimizerParamState* state,
          std::initializer_list<torch::Tensor& (State::*)()> moments) {
  auto* own = dynamic_cast<State*>(state);
  if (!own) return;
  for (const auto moment : moments)
    if (torch::Tensor& one = (own->*moment)(); one.defined()) one.zero_();
}

void clear_moments(torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  using namespace torch::optim;
  if (!parameter.defined()) return;
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
  if (found == optimizer.state().end()) return;
  OptimizerParamState* state = found->second.get();
  zero<AdamParamState>(state, {&AdamParamState::exp_avg, &AdamParamState::exp_avg_sq});
  zero<AdamWParamState>(state, {&AdamWParamState::exp_avg, &AdamWParamState::exp_avg_sq});
  zero<SGDParamState>(state, {&SGDParamState::momentum_buffer});
  zero<RMSpropParamState>(state, {&RMSpropParamState::momentum_buffer});
}

}  // namespace

Schedule::Schedule(torch::nn::Module& module, const Recipe& recipe, int64_t total_steps,
                   torch::optim::Optimizer* optimizer)
    : module_(module),
      bits_(recipe.schedule, recipe.train.freeze_observers, total_steps),
      optimizer_(optimizer) {
  if (prepared_layers(module).empty())
    throw std::invalid_argument(
        "The module must be prepared first, with qat::prepare(module, recipe).");
  apply(name_of(recipe.initialize.search()));
}

bool Schedule::step() {
  const int64_t before = stage();
  ++step_;
  apply("mse");
  return stage() != before;
}

void Schedule::finish() {
  step_ = std::max(step_, total_steps());
  apply("mse");
}

void Schedule::apply(const std::string& method, bool derive) {
  for (const ModuleLayer& layer : prepared_layers(module_)) {
    const auto quantizer = layer.quantizer();
    const auto& weight = quantizer->weight();
    auto& input = quantizer->input_quantizer();
    const bool changed = quantizer->set_bits(
        weight ? bits_.weight_bits(step_, weight->spec().bits) : kFloat,
        input ? bits_.input_bits(step_, input->spec().bits) : kFloat, method, derive);
    if (input) input->set_observing(bits_.observing(step_));
    quantizer->refresh();
    if (!changed || !optimizer_ || !weight->learned()) continue;
    clear_moments(*optimizer_, weight->scale());
    clear_moments(*optimizer_, weight->zero_point());
  }
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
    throw std::invalid_argument("The schedule must have the length it was saved with, " +
                                std::to_string(total.item<int64_t>()) + " steps, but has " +
                                std::to_string(total_steps()) + ".");
  step_ = step.item<int64_t>();
  apply("mse", /*derive=*/false);
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
