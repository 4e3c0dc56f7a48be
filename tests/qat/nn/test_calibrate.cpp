#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include "qat/nn/calibrate.h"
#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/recipe/recipe.h"

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
