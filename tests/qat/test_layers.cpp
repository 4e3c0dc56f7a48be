#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <stdexcept>

#include "qat/layers.h"

namespace qat {
namespace {

struct Net : torch::nn::Module {
  QuantLinear first{register_module("first", QuantLinear(64, 32))};
  QuantLinear second{register_module("second", QuantLinear(32, 8))};
  at::Tensor forward(const at::Tensor& x) { return second->forward(at::relu(first->forward(x))); }
};

Plan plan_of(const torch::nn::Module& net, const std::string& weight,
             const std::string& rest = "") {
  return make_plan(
      parse_recipe("version: 1\nlayers:\n  - {match: \"*\", weight: " + weight + rest + "}\n",
                   "r.yaml"),
      linear_layers(net));
}

TEST(QuantLinear, IsAPlainLinearUntilPrepared) {
  Net net;
  const at::Tensor x = at::randn({3, 64});
  EXPECT_TRUE(at::equal(net.first->forward(x), at::linear(x, net.first->weight, net.first->bias)));
}

TEST(QuantLinear, ConvertGivesTheWeightsOfTheForward) {
  for (const auto* weight :
       {"{dtype: int4, group_size: 32}", "{dtype: int4, group_size: 32, scale: mse, grid: full}",
        "{dtype: int3, scale: learned, symmetric: false}",
        "{dtype: int8, scale: learned, grid: signed}"}) {
    Net net;
    prepare(net, plan_of(net, weight), "mse");
    const auto converted = convert(net, at::kFloat);
    ASSERT_EQ(converted.size(), 2u);
    const at::Tensor x = at::randn({3, 64});
    const at::Tensor hidden =
        at::relu(at::linear(x, dequantize_weights(converted[0]), net.first->bias));
    EXPECT_TRUE(at::equal(net.forward(x),
                          at::linear(hidden, dequantize_weights(converted[1]), net.second->bias)))
        << weight;
  }
}

TEST(QuantLinear, LearnedScalesAreParametersAndReceiveGradients) {
  Net net;
  prepare(net, plan_of(net, "{dtype: int4, group_size: 32, scale: learned}"), "mse");
  net.forward(at::randn({3, 64})).square().sum().backward();
  const auto parameters = net.named_parameters();
  ASSERT_TRUE(parameters.contains("first.weight_scale"));
  EXPECT_GT(parameters["first.weight_scale"].grad().abs().sum().item<float>(), 0.0f);
}

TEST(QuantLinear, TheScheduleReDerivesScalesFromTheMasterWeight) {
  Net net;
  const Plan plan = plan_of(net, "{dtype: int4, scale: learned}");
  prepare(net, plan, "mse");
  const at::Tensor narrow = net.first->weight_quantizer()->scale().detach().clone();
  const Schedule schedule({{{true, 50}, 8, kTarget, {}}, {{true, 100}, 4, kTarget, {}}}, {true, 80},
                          10);
  apply_schedule(net, schedule, 0);
  EXPECT_EQ(net.first->weight_quantizer()->bits(), 8);
  apply_schedule(net, schedule, 5);
  EXPECT_EQ(net.first->weight_quantizer()->bits(), 4);
  EXPECT_TRUE(at::equal(net.first->weight_quantizer()->scale(), narrow));
}

TEST(QuantLinear, CalibratedInputsFollowTheObserverUntilItFreezes) {
  Net net;
  prepare(net, plan_of(net, "{dtype: int8}", ", input: {dtype: int8, granularity: tensor}"), "mse");
  const Schedule schedule({}, {false, 1}, 10);
  apply_schedule(net, schedule, 0);
  net.first->forward(at::full({1, 64}, 127.0f));
  apply_schedule(net, schedule, 1);
  net.first->forward(at::full({1, 64}, 1000.0f));
  EXPECT_EQ(net.first->observer().high(), 127.0);
  EXPECT_EQ(convert(net, at::kFloat)[0].input_scale->item<float>(), 1.0f);
}

TEST(Prepare, NamesALayerWhoseWeightIsNotFinite) {
  Net net;
  const at::NoGradGuard no_grad;
  net.second->weight[0][0] = NAN;
  try {
    prepare(net, plan_of(net, "{dtype: int8}"), "mse");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "The weight of second must be finite, but has elements that are NaN or infinite.");
  }
}

TEST(Prepare, NamesALayerThatTheModuleLacks) {
  Net net;
  Plan plan = plan_of(net, "{dtype: int8}");
  plan.layers[0].name = "third";
  EXPECT_THROW(prepare(net, plan, "mse"), std::invalid_argument);
}

}  // namespace
}  // namespace qat
