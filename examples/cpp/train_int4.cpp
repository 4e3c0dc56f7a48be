// Quantization-aware training in a LibTorch program, without Python: a recipe, a schedule, a
// checkpoint.
//
//   example_train_int4 RECIPE OUTPUT.safetensors
//
// Ends with an error unless the 4-bit network, read back from the file, predicts what training saw.

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/optim/adam.h>

#include <cstdio>
#include <exception>

#include "qat/formats/compressed_tensors.h"
#include "qat/layers.h"
#include "qat/safetensors.h"

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

  const auto weights = qat::convert(net, at::kFloat);
  qat::save_safetensors(output, qat::to_compressed_tensors(weights, {}).tensors);
  const auto read = qat::load_safetensors(output);
  std::printf("wrote %zu tensors to %s\n", read.size(), output);

  const at::Tensor x = at::randn({16, 32});
  const at::Tensor hidden =
      at::tanh(at::linear(x, qat::dequantize_weights(weights[0]), net.first->bias));
  const at::Tensor deployed =
      at::linear(hidden, qat::dequantize_weights(weights[1]), net.second->bias);
  if (at::equal(deployed, net.forward(x))) return 0;
  std::fprintf(stderr, "The deployed network differs from the trained one.\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s RECIPE OUTPUT.safetensors\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
