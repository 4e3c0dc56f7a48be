#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/optim.h>
#include <torch/serialize.h>

#include <memory>
#include <sstream>

#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"
#include "tests/ops/quantizer_text.h"
#include "tests/qat/message_of.h"
#include "tests/qat/recipe_of.h"

namespace qat {
namespace {

namespace nn = torch::nn;

TEST(DropIns, RoundTheirWeightAnewByThemselves) {
  nn::Sequential net(QuantLinear(8, 8));
  prepare(*net, recipe_of("{match: \"*\", weight: {dtype: int4}}"));
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  const at::Tensor x = at::randn({2, 8});
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    net->forward(x).sum().backward();
    optimizer.step();
  }
  const auto converted = convert(*net);
  EXPECT_TRUE(at::equal(net->forward(x), at::addmm(net->named_parameters()["0.bias"], x,
                                                   dequantize_weights(converted[0]).t())));
}

TEST(DropIns, ArePlainUntilThenAndRoundTheirInputAfterwards) {
  QuantLinear layer(16, 4);
  nn::Sequential net(layer);
  const at::Tensor x = at::randn({3, 16});
  EXPECT_TRUE(at::equal(layer->forward(x), at::addmm(layer->bias, x, layer->weight.t())));
  prepare(*net, recipe_of("{match: \"*\", input: {dtype: int8, granularity: token}}"));
  const at::Tensor rounded =
      std::get<0>(fake_quantize(x, text("minmax", 8, "narrow", {1, -1}, at::kFloat)));
  const auto& input = prepared_layers(*net)[0].quantizer()->input_quantizer();
  EXPECT_EQ(input->spec().scale.code, ScaleCode::float32);
  EXPECT_TRUE(at::equal(layer->forward(x), at::addmm(layer->bias, rounded, layer->weight.t())));
}

TEST(DropIns, ClonesAreDropInsOfTheirOwn) {
  nn::Sequential net(QuantConv2d(nn::Conv2dOptions(3, 4, 3)), nn::Flatten(), QuantLinear(16, 8));
  net[2]->eval();
  nn::Sequential copy(std::dynamic_pointer_cast<nn::SequentialImpl>(net->clone()));
  const at::Tensor x = at::randn({2, 3, 4, 4});
  EXPECT_TRUE(at::equal(net->forward(x), copy->forward(x)));
  ASSERT_NE(copy[0]->as<QuantConv2d>(), nullptr);
  ASSERT_NE(copy[2]->as<QuantLinear>(), nullptr);
  EXPECT_FALSE(copy[2]->is_training());
  EXPECT_NE(copy[2]->as<QuantLinear>()->weight.data_ptr(),
            net[2]->as<QuantLinear>()->weight.data_ptr());
  prepare(*copy, recipe_of("{match: \"*\", weight: {dtype: int4}}"));
  EXPECT_FALSE(at::equal(net->forward(x), copy->forward(x)));
  EXPECT_EQ(message_of([&] { copy->clone(); }),
            "qat::QuantConv2dImpl must not be cloned once it is prepared: clone the module before "
            "qat::prepare(), and prepare both.");
}

// LibTorch's SGD writes past the versions of parameters, Adam does not.
TEST(DropIns, SeeWhatEveryOptimizerWrites) {
  for (const bool adam : {false, true}) {
    nn::Sequential net(QuantLinear(8, 8));
    prepare(*net, recipe_of("{match: \"*\", weight: {dtype: int4}}"));
    std::unique_ptr<torch::optim::Optimizer> optimizer;
    if (adam)
      optimizer = std::make_unique<torch::optim::Adam>(net->parameters(), 0.1);
    else
      optimizer = std::make_unique<torch::optim::SGD>(net->parameters(), 0.1);
    const at::Tensor x = at::randn({2, 8});
    for (int step = 0; step < 3; ++step) {
      net->forward(x).sum().backward();
      optimizer->step();
      net->forward(x);
      EXPECT_TRUE(at::equal(net[0]->as<QuantLinear>()->weight,
                            prepared_layers(*net)[0].quantizer()->rounded()))
          << adam << step;
    }
  }
}

TEST(DropIns, StateGoesThroughSaveAndLoad) {
  const Recipe recipe = recipe_of(
      "{match: \"*\", weight: {dtype: int4, scale: learned}, input: {dtype: int8, granularity: "
      "tensor}}",
      "schedule: [{until: 50%, weight: int8}, {until: 100%}]");
  const auto make = [] { return nn::Sequential(QuantLinear(8, 8), nn::ReLU(), QuantLinear(8, 4)); };
  nn::Sequential net = make();
  prepare(*net, recipe);
  torch::optim::Adam optimizer(net->parameters(), 0.01);
  Schedule schedule(*net, recipe, 10, &optimizer);
  const at::Tensor x = at::randn({16, 8});
  const auto train = [&x](nn::Sequential& one, torch::optim::Optimizer& by, Schedule& along,
                          int steps) {
    for (int step = 0; step < steps; ++step) {
      by.zero_grad();
      one->forward(x).square().sum().backward();
      by.step();
      along.step();
    }
  };
  train(net, optimizer, schedule, 3);
  std::stringstream model_state, optimizer_state, schedule_state;
  torch::save(net, model_state);
  torch::save(optimizer, optimizer_state);
  torch::save(schedule, schedule_state);

  nn::Sequential other = make();
  prepare(*other, recipe);
  torch::optim::Adam second(other->parameters(), 0.01);
  Schedule along(*other, recipe, 10, &second);
  torch::load(other, model_state);
  torch::load(second, optimizer_state);
  torch::load(along, schedule_state);
  EXPECT_EQ(along.current_step(), 3);
  net->eval(), other->eval();
  EXPECT_TRUE(at::equal(net->forward(x), other->forward(x)));
  net->train(), other->train();
  train(net, optimizer, schedule, 7);
  train(other, second, along, 7);
  EXPECT_TRUE(at::equal(net->forward(x), other->forward(x)));
  EXPECT_TRUE(at::equal(convert(*net)[1].codes, convert(*other)[1].codes));
}

}  // namespace
}  // namespace qat
