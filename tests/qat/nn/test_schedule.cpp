#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"

namespace qat {
namespace {

namespace nn = torch::nn;

Recipe ladder(const std::string& layers) {
  return parse_recipe("version: 1\nlayers: [" + layers +
                          "]\nschedule: [{until: 20%, weight: float}, {until: 60%, weight: int8}, "
                          "{until: 100%}]\ntrain: {freeze_observers: 10%}\n",
                      "r.yaml");
}

const WeightQuantizer& weight_of(const nn::Module& net) {
  return *prepared_layers(net)[0].quantizer()->weight();
}

TEST(Schedule, MovesWidthsAndRoundsAnew) {
  nn::Sequential net(nn::Linear(16, 8));
  const Recipe recipe = ladder("{match: \"*\", weight: {dtype: int4, scale: learned}}");
  prepare(*net, recipe);
  const at::Tensor narrow = weight_of(*net).scale().detach().clone();
  Schedule schedule(*net, recipe, 10);
  const at::Tensor master = net->named_parameters()["0.weight"];
  EXPECT_TRUE(net[0]->as<nn::Linear>()->weight.is_same(master));  // still in floating point
  EXPECT_FALSE(schedule.step());
  EXPECT_TRUE(schedule.step());
  EXPECT_EQ(weight_of(*net).bits(), 8);
  EXPECT_FALSE(at::equal(net[0]->as<nn::Linear>()->weight, master));
  for (int step = 2; step < 6; ++step) schedule.step();
  EXPECT_EQ(schedule.stage(), 2);
  EXPECT_EQ(weight_of(*net).bits(), 4);
  EXPECT_TRUE(at::equal(weight_of(*net).scale(), narrow));  // derived from the master weight
}

TEST(Schedule, ClearsTheMomentsOfScalesThatItDerivesAnew) {
  nn::Sequential net(nn::Linear(16, 8));
  const Recipe recipe = ladder("{match: \"*\", weight: {dtype: int4, scale: learned}}");
  prepare(*net, recipe);
  torch::optim::Adam optimizer(parameter_groups(*net, torch::optim::AdamOptions(1e-3), 1e-3),
                               torch::optim::AdamOptions(1e-3));
  Schedule schedule(*net, recipe, 10, &optimizer);
  const at::Tensor scale = weight_of(*net).scale();
  const auto moment = [&] {
    auto& state = static_cast<torch::optim::AdamParamState&>(
        *optimizer.state().at(scale.unsafeGetTensorImpl()));
    return state.exp_avg().abs().sum().item<float>();
  };
  for (int step = 0; step < 5; ++step) {
    optimizer.zero_grad();
    net->forward(at::randn({4, 16})).square().sum().backward();
    optimizer.step();
    schedule.step();
  }
  EXPECT_GT(moment(), 0.0f);
  schedule.step();
  EXPECT_EQ(moment(), 0.0f);
}

TEST(Schedule, CalibratedInputsFollowTheirObserverUntilItFreezes) {
  nn::Sequential net(QuantLinear(16, 8));
  const Recipe recipe =
      ladder("{match: \"*\", weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}}");
  prepare(*net, recipe);
  Schedule schedule(*net, recipe, 10);
  net->forward(at::full({1, 16}, 127.0f));
  net->eval();
  net->forward(at::full({1, 16}, 500.0f));  // not while training
  net->train();
  schedule.step();
  net->forward(at::full({1, 16}, 1000.0f));
  schedule.finish();
  EXPECT_EQ(convert(*net)[0].input_scale->item<float>(), 1.0f);
}

TEST(Schedule, RefusesAModuleThatIsNotPrepared) {
  nn::Sequential net(nn::Linear(16, 8));
  EXPECT_THROW(Schedule(*net, ladder("{match: \"*\", weight: {dtype: int4}}"), 10),
               std::invalid_argument);
}

}  // namespace
}  // namespace qat
