#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>

#include "qat/nn/fold.h"
#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"

namespace qat {
namespace {

namespace nn = torch::nn;

// A normalisation before two layers, and a layer before a third, with outliers in some features.
struct Net : nn::Module {
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({32})))};
  QuantLinear left{register_module("left", QuantLinear(32, 48))};
  QuantLinear right{register_module("right", QuantLinear(32, 48))};
  QuantLinear last{register_module("last", QuantLinear(48, 16))};
  bool smooth = false;
  Net() {
    const at::NoGradGuard no_grad;
    norm->weight.slice(0, 0, 4).mul_(20.0);
    left->weight.slice(0, 0, 5).mul_(10.0);
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor y = norm->forward(x), l = left->forward(y);
    return last->forward((smooth ? at::tanh(l) : at::relu(l))) + right->forward(y).narrow(1, 0, 16);
  }
};

const std::vector<Fold> kFolds{{"norm", {"left", "right"}}, {"left", {"last"}}};

struct Calibrated {
  Net net;
  at::Tensor batch, expected;
  Recipe recipe;

  explicit Calibrated(const std::string& method,
                      const std::string& layers = "weight: {dtype: int4, scale: mse}") {
    at::manual_seed(0);
    net = Net();
    batch = at::randn({64, 32});
    const at::NoGradGuard no_grad;
    expected = net.forward(batch);
    recipe = parse_recipe("version: 1\nlayers: [{match: \"*\", " + layers +
                              "}]\ninitialize: {method: " + method + "}\n",
                          "r.yaml");
    prepare(net, recipe);
  }
  Calibration run(const std::vector<Fold>& folds) {
    return calibrate(
        net, {batch}, [this](const at::Tensor& x) { net.forward(x); }, recipe.initialize, folds);
  }
  double error() {
    const at::NoGradGuard no_grad;
    return (net.forward(batch) - expected).square().mean().item<double>();
  }
};

TEST(Fold, AwqLowersTheErrorOfWeights) {
  Calibrated clipped("awq"), folded("awq");
  EXPECT_EQ(clipped.run({}).warnings.size(), 1u);
  EXPECT_TRUE(folded.run(kFolds).warnings.empty());
  EXPECT_LT(folded.error(), 0.9 * clipped.error());
}

TEST(Fold, SmoothQuantLowersTheErrorOfInputs) {
  const std::string layers = "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}";
  Calibrated plain("rtn", layers), smooth("smoothquant+rtn", layers);
  plain.run({});
  smooth.run(kFolds);
  EXPECT_LT(smooth.error(), 0.7 * plain.error());
}

TEST(Fold, LeavesTheFloatFunctionAsItWas) {
  Calibrated folded("awq");
  folded.run(kFolds);
  const at::NoGradGuard no_grad;
  Net plain;
  for (const auto& item : plain.named_parameters())
    item.value().copy_(folded.net.named_parameters()[item.key()]);
  EXPECT_LT((plain.forward(folded.batch) - folded.expected).abs().max().item<double>(),
            1e-3 * folded.expected.abs().max().item<double>());
}

// The first batch, of one token, ends before the layers that the scales go to.
TEST(Fold, GoesByABatchThatReachesTheConsumers) {
  Calibrated usual("awq"), skipped("awq");
  usual.run(kFolds);
  calibrate(
      skipped.net, {skipped.batch.slice(0, 0, 1), skipped.batch},
      [&](const at::Tensor& x) {
        if (x.size(0) == 1)
          skipped.net.norm->forward(x);
        else
          skipped.net.forward(x);
      },
      skipped.recipe.initialize, kFolds);
  EXPECT_EQ(usual.error(), skipped.error());
}

TEST(Fold, RefusesWhatDoesNotLetAScalePassAndRestoresTheSource) {
  Calibrated bent("awq");
  bent.net.smooth = true;
  const at::Tensor before = bent.net.named_parameters()["left.weight"].detach().clone();
  try {
    bent.run({{"left", {"last"}}});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "The fold of left into last: what lies between them must let a scale for each "
                 "feature pass, as ReLU does, but the input changed in another way.");
  }
  EXPECT_TRUE(at::equal(before, bent.net.named_parameters()["left.weight"]));
}

TEST(Fold, NamesWhatItDoesNotFind) {
  Calibrated one("awq");
  EXPECT_THROW(one.run({{"norm", {"middle"}}}), std::invalid_argument);
  EXPECT_THROW(one.run({{"nothing", {"last"}}}), std::invalid_argument);
  EXPECT_THROW(one.run({{"norm", {}}}), std::invalid_argument);
}

}  // namespace
}  // namespace qat
