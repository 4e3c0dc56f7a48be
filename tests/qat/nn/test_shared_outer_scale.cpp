#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include "qat/nn/calibrate.h"
#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"
#include "tests/qat/recipe_of.h"

namespace qat {
namespace {

namespace nn = torch::nn;

struct Attention : nn::Module {
  nn::Linear q_proj{register_module("q_proj", nn::Linear(64, 64))};
  nn::Linear k_proj{register_module("k_proj", nn::Linear(64, 32))};
  nn::Linear v_proj{register_module("v_proj", nn::Linear(64, 32))};
  nn::Linear o_proj{register_module("o_proj", nn::Linear(32, 64))};
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor mixed = at::cat({k_proj->forward(x), v_proj->forward(x)}, -1);
    return o_proj->forward((q_proj->forward(x) * mixed.tanh()).narrow(-1, 0, 32));
  }
};

float outer_of(const QuantizedWeights& weights) { return weights.outer_scale->item<float>(); }

// In order: q, k, v and o.
std::vector<QuantizedWeights> trained(Attention& net, const std::string& range,
                                      const std::string& rest = "") {
  at::manual_seed(3);
  {
    const at::NoGradGuard no_grad;
    net.k_proj->weight.mul_(5.0);  // decides for all three
  }
  const Recipe recipe =
      recipe_of("{match: \"*\", weight: {dtype: nvfp4, scale: " + range + "}}", rest);
  prepare(net, recipe);
  torch::optim::SGD optimizer(net.parameters(), 0.05);
  Schedule schedule(net, recipe, 6, &optimizer);
  for (int step = 0; step < 6; ++step) {
    optimizer.zero_grad();
    net.forward(at::randn({8, 64})).pow(2).mean().backward();
    optimizer.step();
    schedule.step();
  }
  return convert(net);
}

// Rounding moves the weights of q while k and v are still to come.
TEST(SharedOuterScale, LayersThatAreRoundedOneAfterTheOtherComeUnderOne) {
  for (const char* range : {"mse", "learned"})
    for (const char* method : {"gptq", "awq", "mse"}) {
      at::manual_seed(3);
      Attention net;
      {
        const at::NoGradGuard no_grad;
        net.k_proj->weight.mul_(5.0);
      }
      const float needed =
          net.k_proj->weight.abs().max().div(6.0f * 448.0f).log2().ceil().exp2().item<float>();
      const Recipe recipe =
          recipe_of(std::string("{match: \"*\", weight: {dtype: nvfp4, scale: ") + range + "}}",
                    std::string("initialize: {method: ") + method + "}\n");
      prepare(net, recipe);
      const std::vector<at::Tensor> batches{at::randn({64, 64}), at::randn({64, 64})};
      const auto forward = [&](const at::Tensor& x) { net.forward(x); };
      calibrate(net, batches, forward, recipe.initialize);
      const auto layers = convert(net);
      for (size_t i = 0; i < 3; ++i) EXPECT_EQ(outer_of(layers[i]), outer_of(layers[1])) << method;
      // Learned scales have the one that they need by now.
      if (range == std::string("mse"))
        EXPECT_EQ(outer_of(layers[1]), needed) << method;
      else
        EXPECT_LE(outer_of(layers[1]), needed) << method;
      EXPECT_NE(outer_of(layers[3]), needed);
      // Once more: scales that were settled before are not those of other weights.
      calibrate(net, batches, forward, recipe.initialize);
      for (size_t i = 1; i < 3; ++i)
        EXPECT_EQ(outer_of(convert(net)[i]), outer_of(convert(net)[0]));
    }
}

TEST(SharedOuterScale, FusedLayersAreWrittenWithTheOneThatTheyTrainedUnder) {
  for (const char* range : {"minmax", "mse", "learned"}) {
    Attention net;
    const auto layers = trained(net, range);
    EXPECT_EQ(outer_of(layers[0]), outer_of(layers[1])) << range;
    EXPECT_EQ(outer_of(layers[0]), outer_of(layers[2])) << range;
    EXPECT_NE(outer_of(layers[0]), outer_of(layers[3])) << range;
    const std::vector<at::Tensor> used{net.q_proj->weight, net.k_proj->weight, net.v_proj->weight,
                                       net.o_proj->weight};
    for (size_t i = 0; i < used.size(); ++i)
      EXPECT_TRUE(at::equal(dequantize_weights(layers[i]), used[i].detach())) << range << " " << i;
  }
}

TEST(SharedOuterScale, FollowsAWidthThatAScheduleChanges) {
  for (const char* range : {"minmax", "mse", "learned"}) {
    Attention net;
    const auto layers =
        trained(net, range, "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n");
    EXPECT_EQ(outer_of(layers[0]), outer_of(layers[1])) << range;
    EXPECT_TRUE(at::equal(dequantize_weights(layers[0]), net.q_proj->weight.detach())) << range;
  }
}

TEST(SharedOuterScale, AWeightThatGrowsMovesTheOthers) {
  Attention net;
  trained(net, "minmax");
  const at::Tensor before = net.q_proj->weight.detach().clone();
  auto parameters = net.named_parameters();
  {
    const at::NoGradGuard no_grad;
    parameters["v_proj.weight"].mul_(1e6);  // under whose outer scale E4M3 has no numbers for q
  }
  net.train();  // rounds anew
  const auto layers = convert(net);
  EXPECT_EQ(outer_of(layers[0]), outer_of(layers[2]));
  EXPECT_FALSE(at::equal(before, net.q_proj->weight.detach()));
  EXPECT_TRUE(at::equal(dequantize_weights(layers[0]), net.q_proj->weight.detach()));
}

}  // namespace
}  // namespace qat
