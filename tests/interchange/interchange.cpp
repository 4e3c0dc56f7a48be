// The C++ half of tests/python/test_interchange.py: the same network, weights, recipe and data as
// there.
//
//   qat_interchange round WEIGHTS RECIPE STEP TOTAL OUT    the weights in force at a step
//   qat_interchange train WEIGHTS RECIPE TOTAL FOLDER      trains on `x` and `y` of WEIGHTS,
//   exports qat_interchange calibrate WEIGHTS RECIPE FOLDER        calibrates on `x`, exports
//   qat_interchange export FOLDER AGAIN                    loads into packed layers, exports again
//   qat_interchange run FOLDER X OUT                       loads, writes the outputs for `x` of X

#include <ATen/ATen.h>
#include <torch/nn.h>
#include <torch/optim/sgd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "qat/checkpoint/safetensors.h"
#include "qat/qat.h"

namespace {

namespace nn = torch::nn;

template <typename Linear>
struct Net : nn::Module {
  nn::Embedding words{register_module("words", nn::Embedding(32, 24))};
  qat::QuantConv2d conv{
      register_module("conv", qat::QuantConv2d(nn::Conv2dOptions(2, 4, 3).padding(1)))};
  nn::ModuleList layers{register_module("layers", nn::ModuleList(Linear(48, 64), Linear(64, 48)))};
  // Words, two by two, as images of 2 channels, 4 by 6.
  at::Tensor forward(const at::Tensor& ids) {
    at::Tensor x = words->forward(ids).view({-1, 2, 4, 6});
    x = (x + conv->forward(x).narrow(1, 0, 2)).flatten(1);
    x = at::relu(layers->at<typename Linear::ContainedType>(0).forward(x));
    return layers->at<typename Linear::ContainedType>(1).forward(x);
  }
};
using Trained = Net<qat::QuantLinear>;

void fill(Trained& net, const qat::NamedTensors& weights) {
  const at::NoGradGuard no_grad;
  for (const auto& item : net.named_parameters()) item.value().copy_(weights.at(item.key()));
}

void round_at(const std::vector<std::string>& arguments) {
  Trained net;
  fill(net, qat::load_safetensors(arguments[0]));
  const qat::Recipe recipe = qat::load_recipe(arguments[1]);
  qat::prepare(net, recipe);
  qat::Schedule schedule(net, recipe, std::stoll(arguments[3]));
  for (int64_t step = 0; step < std::stoll(arguments[2]); ++step) schedule.step();
  qat::NamedTensors rounded;
  for (const qat::ModuleLayer& layer : qat::prepared_layers(net))
    rounded[layer.name] = layer.weight->detach().flatten(1).contiguous();
  qat::save_safetensors(arguments[4], rounded);
}

void train(const std::vector<std::string>& arguments) {
  Trained net;
  const qat::NamedTensors given = qat::load_safetensors(arguments[0]);
  fill(net, given);
  const qat::Recipe recipe = qat::load_recipe(arguments[1]);
  const int64_t total = std::stoll(arguments[2]);
  qat::prepare(net, recipe);
  torch::optim::SGD optimizer(net.parameters(), 0.05);
  qat::Schedule schedule(net, recipe, total, &optimizer);
  for (int64_t step = 0; step < total; ++step) {
    optimizer.zero_grad();
    (net.forward(given.at("x")) - given.at("y")).square().mean().backward();
    optimizer.step();
    schedule.step();
  }
  qat::export_folder(net, arguments[3]);
}

void calibrate(const std::vector<std::string>& arguments) {
  Trained net;
  const qat::NamedTensors given = qat::load_safetensors(arguments[0]);
  fill(net, given);
  const qat::Recipe recipe = qat::load_recipe(arguments[1]);
  qat::prepare(net, recipe);
  qat::calibrate(
      net, {given.at("x")}, [&](const at::Tensor& x) { net.forward(x); }, recipe.initialize);
  qat::export_folder(net, arguments[2]);
}

void export_again(const std::vector<std::string>& arguments) {
  Net<qat::PackedLinear> net;
  qat::load(net, arguments[0]);
  qat::export_folder(net, arguments[1]);
}

void run(const std::vector<std::string>& arguments) {
  const at::NoGradGuard no_grad;
  Trained net;
  qat::load(net, arguments[0]);
  Net<qat::PackedLinear> packed;
  qat::load(packed, arguments[0]);
  const at::Tensor x = qat::load_safetensors(arguments[1]).at("x");
  qat::save_safetensors(arguments[2], {{"plain", net.forward(x)}, {"packed", packed.forward(x)}});
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 2, argv + argc);
  const std::string command = argv[1];
  try {
    if (command == "round") round_at(arguments);
    if (command == "train") train(arguments);
    if (command == "calibrate") calibrate(arguments);
    if (command == "export") export_again(arguments);
    if (command == "run") run(arguments);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
