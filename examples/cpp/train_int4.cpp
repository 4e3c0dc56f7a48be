// Quantization-aware training in a LibTorch program, without Python: a recipe, a schedule, a
// checkpoint.
//
//   example_train_int4 RECIPE OUTPUT_FOLDER
//
// Ends with an error unless the 4-bit network, read back from the folder, predicts what training
// saw.

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/optim/adam.h>

#include <cstdio>
#include <exception>

#include "qat/checkpoint.h"
#include "qat/layers.h"

namespace {

struct Net : torch::nn::Module {
  qat::QuantLinear first{register_module("first", qat::QuantLinear(32, 64))};
  qat::QuantLinear second{register_module("second", qat::QuantLinear(64, 32))};
  at::Tensor forward(const at::Tensor& x) { return second->forward(at::tanh(first->forward(x))); }
};

at::Tensor target_of(const at::Tensor& x) { return at::sin(x * 2.0) + x.roll(1, -1); }

void train(Net& net, const qat::Schedule& schedule) {
  torch::optim::Adam optimizer(net.parameters(), 5e-3);
  for (int64_t step = 0; step < schedule.total_steps(); ++step) {
    qat::apply_schedule(net, schedule, step);
    const at::Tensor x = at::randn({256, 32});
    const at::Tensor loss = (net.forward(x) - target_of(x)).square().mean();
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 50 == 0)
      std::printf("step %3ld  int%d  loss %.4f\n", static_cast<long>(step),
                  net.first->weight_quantizer()->bits(), loss.item<double>());
  }
}

int run(const char* recipe_path, const char* output) {
  const qat::Recipe recipe = qat::load_recipe(recipe_path);
  Net net;
  const qat::Plan plan = qat::make_plan(recipe, qat::linear_layers(net));
  std::printf("%s", qat::to_text(plan).c_str());
  qat::prepare(net, plan, recipe.initialize.method);
  train(net, qat::Schedule(plan.stages, recipe.train.freeze_observers, recipe.train.steps));

  const qat::NamedTensors biases{{"first.bias", net.first->bias.detach()},
                                 {"second.bias", net.second->bias.detach()}};
  qat::save_checkpoint(output, {qat::convert(net, at::kFloat), biases});
  const qat::Checkpoint read = qat::load_checkpoint(output);
  std::printf("wrote %zu layers to %s\n", read.layers.size(), output);

  const at::Tensor x = at::randn({16, 32});
  const auto layer = [&](size_t index, const char* bias, const at::Tensor& input) {
    return at::linear(input, qat::dequantize_weights(read.layers[index]), read.others.at(bias));
  };
  const at::Tensor deployed = layer(1, "second.bias", at::tanh(layer(0, "first.bias", x)));
  if (at::equal(deployed, net.forward(x))) return 0;
  std::fprintf(stderr, "The deployed network differs from the trained one.\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s RECIPE OUTPUT_FOLDER\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
