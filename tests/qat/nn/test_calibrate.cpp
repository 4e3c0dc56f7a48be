#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/embedding.h>

#include <list>
#include <stdexcept>
#include <tuple>

#include "qat/nn/calibrate.h"
#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/recipe/recipe.h"
#include "tests/qat/message_of.h"

namespace qat {
namespace {

// Two layers on one input, a third on their sum; `spare` runs only when asked.
struct Net : torch::nn::Module {
  QuantLinear left{register_module("left", QuantLinear(48, 64))};
  QuantLinear right{register_module("right", QuantLinear(48, 64))};
  QuantLinear last{register_module("last", QuantLinear(64, 16))};
  QuantLinear spare{register_module("spare", QuantLinear(16, 16))};
  at::Tensor forward(const at::Tensor& x) {
    return last->forward(at::tanh(left->forward(x)) + at::relu(right->forward(x)));
  }
};

struct Prepared {
  Net net;
  Recipe recipe;
  std::vector<at::Tensor> batches;

  explicit Prepared(const std::string& initialize,
                    const std::string& specs = "weight: {dtype: int3, scale: mse}") {
    at::manual_seed(0);
    net = Net();
    const at::Tensor mix = at::randn({48, 48}) / 7.0;
    for (int i = 0; i < 4; ++i) batches.push_back(at::mm(at::randn({64, 48}), mix));
    recipe = parse_recipe(
        "version: 1\nlayers: [{match: \"*\", " + specs + "}]\ninitialize: " + initialize, "r");
    prepare(net, recipe);
  }
  Calibration run() {
    return calibrate(net, batches, [&](const at::Tensor& x) { net.forward(x); }, recipe.initialize);
  }
};

const InputQuantizer& input_of(const Prepared& prepared) {
  return *prepared_layers(prepared.net)[0].quantizer()->input_quantizer();
}

double error_of(const std::string& initialize) {
  at::manual_seed(0);
  Net original;
  Prepared prepared(initialize);
  const at::NoGradGuard no_grad;
  const auto from = original.named_parameters(), to = prepared.net.named_parameters();
  for (const auto& item : from) EXPECT_TRUE(at::equal(item.value(), to[item.key()])) << item.key();
  prepared.run();
  double total = 0.0;
  for (const at::Tensor& x : prepared.batches)
    total += (original.forward(x) - prepared.net.forward(x)).square().sum().item<double>();
  return total;
}

TEST(Calibrate, GptqOnAModuleBeatsRoundingToNearest) {
  const double gptq = error_of("{method: gptq}"), nearest = error_of("{method: mse}");
  EXPECT_LT(gptq, 0.7 * nearest);
  EXPECT_LT(error_of("{method: awq}"), nearest);
}

TEST(Calibrate, LayersSeeTheRoundedOnesBeforeThem) {
  Prepared in_turn("{method: gptq}"), together("{method: gptq, sequential: false}");
  const auto first = in_turn.run().losses, second = together.run().losses;
  EXPECT_EQ(first.size(), 3u);  // the spare one is never reached
  EXPECT_EQ(first.at("left"), second.at("left"));
  EXPECT_NE(first.at("last"), second.at("last"));
}

TEST(Calibrate, MasterWeightsHaveTheCodesThatWereChosen) {
  Prepared prepared("{method: gptq}");
  prepared.run();
  for (const auto& weights : convert(prepared.net, at::kFloat))
    EXPECT_TRUE(weights.codes.abs().max().item<int>() <= 3);
  const at::Tensor rounded = prepared_layers(prepared.net)[0].quantizer()->rounded();
  EXPECT_TRUE(at::equal(rounded, prepared.net.left->weight));
  EXPECT_FALSE(at::equal(rounded, prepared.net.named_parameters()["left.weight"]));
  EXPECT_TRUE(at::equal(rounded, dequantize_weights(convert(prepared.net, at::kFloat)[0])));
}

TEST(Calibrate, WhatIsNeverReachedIsRoundedToNearestAndSaid) {
  Prepared prepared("{method: gptq}");
  const auto found = prepared.run();
  ASSERT_EQ(found.warnings.size(), 1u);
  EXPECT_EQ(found.warnings[0],
            "spare was never reached by the calibration data, so it was rounded to nearest.");
  EXPECT_EQ(found.tokens.at("left"), 256);
}

TEST(Calibrate, RangesOfInputsComeFromTheirObservers) {
  for (const std::string observer : {"minmax", "percentile", "mse", "entropy"}) {
    Prepared prepared(
        "{method: rtn}",
        "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor, observer: " + observer +
            "}");
    prepared.run();
    Observer expected(input_of(prepared).spec().observer);
    for (const at::Tensor& x : prepared.batches) expected.observe(x);
    const QuantSpec& spec = input_of(prepared).spec();
    EXPECT_TRUE(at::equal(std::get<0>(input_of(prepared).observer().qparams(spec, 8)),
                          std::get<0>(expected.qparams(spec, 8))))
        << observer;
  }
}

// They fit under any scale: other inputs would be rounded to whole numbers.
TEST(Calibrate, InputsOfZerosAloneAndThoseThatAreNotReachedHaveNoRange) {
  const std::string observed = "{dtype: int8, granularity: tensor, observer: moving_average}";
  Prepared prepared("{method: rtn}", "weight: {dtype: int8}, input: " + observed);
  for (at::Tensor& x : prepared.batches) x.zero_();
  const std::vector<std::string> warnings = prepared.run().warnings;
  EXPECT_EQ(warnings[0],
            "left was given zeros alone by all calibration batches, so its input has no range.");
  EXPECT_EQ(warnings.back(),
            "spare was reached by no calibration batch, so its input has no range.");
  const at::Tensor x = at::full({2, 48}, 0.3);
  EXPECT_TRUE(at::equal(
      (*prepared_layers(prepared.net)[0].quantizer()->input_quantizer())(x, /*training=*/false),
      x));
  EXPECT_THROW(convert(prepared.net, at::kFloat), std::invalid_argument);
}

TEST(Calibrate, WeightsDoNotSeeInputsThatAreNotCalibratedYet) {
  const std::string weight = "weight: {dtype: int3, scale: mse}";
  Prepared plain("{method: gptq}", weight);
  Prepared fixed("{method: gptq}", weight + ", input: {dtype: int8, granularity: tensor}");
  EXPECT_EQ(plain.run().losses, fixed.run().losses);
  EXPECT_FALSE(input_of(fixed).observer().empty());
}

TEST(Calibrate, WhatHasNoPlaceHereIsSaid) {
  Prepared prepared("{method: smoothquant+awq+gptq, block_training: {steps: 3}}");
  const auto warnings = prepared.run().warnings;
  EXPECT_EQ(
      warnings[0],
      "smoothquant has nothing to fold scales into in a LibTorch program, so it was left out.");
  EXPECT_EQ(warnings[2], "block_training was left out: a LibTorch program has no blocks.");
}

TEST(Calibrate, LeavesEachModuleInItsOwnMode) {
  Prepared prepared("{method: gptq}");
  prepared.net.right->eval();  // as a batch normalisation that a program has frozen
  const auto expect_modes = [&] {
    EXPECT_TRUE(prepared.net.is_training());
    EXPECT_TRUE(prepared.net.left->is_training());
    EXPECT_FALSE(prepared.net.right->is_training());
  };
  prepared.run();
  expect_modes();
  EXPECT_THROW(
      calibrate(
          prepared.net, prepared.batches, [](const at::Tensor&) { throw std::runtime_error("no"); },
          prepared.recipe.initialize),
      std::runtime_error);
  expect_modes();
}

// The error of the forward is the one to be told.
TEST(Calibrate, AnErrorOnTheWayBackToTrainingDoesNotEndTheProgram) {
  struct Stubborn : Net {
    void train(bool on) override {
      if (on) throw std::runtime_error("will not train");
      Net::train(on);
    }
  };
  Stubborn net;
  const Recipe recipe = parse_recipe(
      "version: 1\nlayers: [{match: \"*\", weight: {dtype: int3, scale: mse}}]\n"
      "initialize: {method: gptq}",
      "r");
  prepare(net, recipe);
  EXPECT_EQ(message_of([&] {
              calibrate(
                  net, {at::randn({4, 48})},
                  [](const at::Tensor&) { throw std::invalid_argument("no"); }, recipe.initialize);
            }),
            "no");
}

// An encoder block that takes a mask and positions beside its tokens.
struct Encoder : torch::nn::Module {
  torch::nn::Embedding places{register_module("places", torch::nn::Embedding(16, 32))};
  torch::nn::MultiheadAttention attention{register_module(
      "attention", torch::nn::MultiheadAttention(torch::nn::MultiheadAttentionOptions(32, 4)))};
  QuantLinear up{register_module("up", QuantLinear(32, 64))};
  QuantLinear down{register_module("down", QuantLinear(64, 32))};
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& mask, const at::Tensor& order) {
    const at::Tensor x = tokens + places->forward(order).unsqueeze(1);
    const at::Tensor seen = x + std::get<0>(attention->forward(x, x, x, /*key_padding_mask=*/mask));
    return seen + down->forward(at::gelu(up->forward(seen)));
  }
};

using Batch = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

std::list<Batch> encoder_batches() {
  std::list<Batch> batches;
  for (const int64_t length : {16, 12, 8}) {
    at::Tensor mask = at::zeros({4, length}, at::kBool);
    mask.slice(1, length - 2).fill_(true);
    batches.emplace_back(at::randn({length, 4, 32}), mask, at::arange(length));
  }
  return batches;
}

TEST(Calibrate, BatchesMayBeOfAnyKind) {
  const std::string quantized =
      "weight: {dtype: int3, scale: mse}, input: {dtype: int8, granularity: tensor}}";
  const Recipe recipe =
      parse_recipe("version: 1\nlayers: [{match: up, " + quantized + ", {match: down, " +
                       quantized + "]\ninitialize: {method: gptq}",
                   "r");
  const std::list<Batch> batches = encoder_batches();
  const auto calibrated = [&](const auto& by) {
    at::manual_seed(1);
    Encoder net;
    prepare(net, recipe);
    const Calibration found = by(net);
    EXPECT_EQ(found.losses.size(), 2u);
    EXPECT_EQ(found.tokens.at("up"), 4 * (16 + 12 + 8));
    const auto converted = convert(net);
    EXPECT_NE(converted[0].input_scale->item<float>(), 1.0f);
    return at::cat({converted[0].codes.flatten(), converted[1].codes.flatten()});
  };
  const at::Tensor by_parts = calibrated([&](Encoder& net) {
    const auto forward = [&](const at::Tensor& tokens, const at::Tensor& mask,
                             const at::Tensor& order) { net.forward(tokens, mask, order); };
    return calibrate(net, batches, forward, recipe.initialize);
  });
  const at::Tensor by_tuple = calibrated([&](Encoder& net) {
    return gptq(net, batches, [&](const Batch& batch) {
      net.forward(std::get<0>(batch), std::get<1>(batch), std::get<2>(batch));
    });
  });
  const at::Tensor by_pass = calibrated([&](Encoder& net) {
    std::vector<Pass> passes;
    for (const auto& [tokens, mask, order] : batches)
      passes.push_back(
          [&, tokens = tokens, mask = mask, order = order] { net.forward(tokens, mask, order); });
    return calibrate(net, passes, recipe.initialize);
  });
  EXPECT_TRUE(at::equal(by_parts, by_tuple));
  EXPECT_TRUE(at::equal(by_parts, by_pass));
}

TEST(Calibrate, NoBatchHasItsSentence) {
  Prepared prepared("{method: gptq}");
  prepared.batches.clear();
  try {
    prepared.run();
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "initialize.method gptq needs at least one calibration batch, but there is none.");
  }
}

}  // namespace
}  // namespace qat
