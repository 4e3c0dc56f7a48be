#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include <functional>
#include <map>
#include <memory>

#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"
#include "tests/qat/host_reads.h"

namespace qat {
namespace {

namespace nn = torch::nn;

Recipe ladder(const std::string& layers, const std::string& train = "{}") {
  return parse_recipe("version: 1\nlayers: [" + layers +
                          "]\nschedule: [{until: 20%, weight: float}, {until: 60%, weight: int8}, "
                          "{until: 100%}]\ntrain: " +
                          train + "\n",
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

using Optimizer = std::unique_ptr<torch::optim::Optimizer>;
using Maker = std::function<Optimizer(std::vector<at::Tensor>)>;

constexpr double kRate = 1e-4;

std::map<std::string, Maker> makers() {
  using namespace torch::optim;
  return {
      {"Adam", [](auto of) { return Optimizer(new Adam(of, AdamOptions(kRate).amsgrad(true))); }},
      {"AdamW", [](auto of) { return Optimizer(new AdamW(of, AdamWOptions(kRate))); }},
      {"Adagrad", [](auto of) { return Optimizer(new Adagrad(of, AdagradOptions(kRate))); }},
      {"RMSprop",
       [](auto of) {
         return Optimizer(new RMSprop(of, RMSpropOptions(kRate).momentum(0.9).centered(true)));
       }},
      {"SGD", [](auto of) { return Optimizer(new SGD(of, SGDOptions(kRate).momentum(0.9))); }}};
}

TEST(Schedule, AfterADropAScaleMovesAsWithANewOptimizer) {
  const Recipe recipe = parse_recipe(
      "version: 1\nlayers: [{match: \"*\", weight: {dtype: int4, scale: learned}, input: {dtype: "
      "int4, granularity: tensor, scale: learned}}]\nschedule: [{until: 50%, weight: int8, input: "
      "int8}, {until: 100%}]\n",
      "r.yaml");
  for (const auto& [name, make] : makers())
    for (const bool of_input : {false, true}) {
      nn::Sequential net(QuantLinear(16, 8));
      prepare(*net, recipe);
      const auto quantizer = prepared_layers(*net)[0].quantizer();
      at::Tensor scale =
          of_input ? quantizer->input_quantizer()->scale() : quantizer->weight()->scale();
      scale.mutable_grad() = at::full_like(scale, -1.0);
      const Optimizer optimizer = make({scale});
      Schedule schedule(*net, recipe, 400, optimizer.get());
      do optimizer->step();
      while (!schedule.step());
      EXPECT_EQ(schedule.current_step(), 200);

      at::Tensor twin = scale.detach().clone().requires_grad_();
      twin.mutable_grad() = at::full_like(twin, -1.0);
      const Optimizer fresh = make({twin});
      for (int step = 0; step < 20; ++step) {
        const at::Tensor before = scale.detach().clone();
        optimizer->step();
        fresh->step();
        EXPECT_TRUE(at::equal(scale, twin)) << name << " " << of_input << " " << step;
        if (name != "Adam") continue;
        EXPECT_LE((scale - before).abs().max().item<double>(), 1.001 * kRate) << of_input;
      }
    }
}

TEST(Schedule, NothingOfAStepWaitsForTheDevice) {
  const Recipe recipe = ladder(
      "{match: \"*\", weight: {dtype: int4, scale: learned}, input: {dtype: int8, "
      "granularity: tensor}}",
      "{freeze_observers: 10%}");
  nn::Sequential net(QuantLinear(16, 8), QuantLinear(8, 4));
  prepare(*net, recipe);
  torch::optim::Adam optimizer(net->parameters(), torch::optim::AdamOptions(1e-3));
  Schedule schedule(*net, recipe, 1000, &optimizer);
  const auto forward_and_back = [&] {
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch)
      net->forward(at::randn({4, 16})).square().sum().backward();
  };
  for (int step = 0; step < 250; ++step) {  // from floating point to int8
    forward_and_back();
    optimizer.step();
    schedule.step();
  }
  EXPECT_EQ(weight_of(*net).bits(), 8);
  const HostReads reads;
  forward_and_back();
  schedule.step();
  EXPECT_EQ(reads.count(), 0);
}

TEST(Schedule, CalibratedInputsFollowTheirObserverUntilItFreezes) {
  nn::Sequential net(QuantLinear(16, 8));
  const Recipe recipe =
      ladder("{match: \"*\", weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}}",
             "{freeze_observers: 10%}");
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
