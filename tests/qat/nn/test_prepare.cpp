#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/optim.h>

#include <cmath>
#include <functional>
#include <stdexcept>

#include "qat/nn/layers.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"
#include "qat/ops/fake_quantize.h"
#include "tests/qat/message_of.h"
#include "tests/qat/nn/sample_nets.h"
#include "tests/qat/recipe_of.h"

namespace qat {
namespace {

namespace nn = torch::nn;

TEST(Prepare, TheForwardUsesTheConvertedWeightsBitForBit) {
  for (const std::string weight :
       {"{dtype: int4, group_size: 16}", "{dtype: int4, group_size: 16, scale: mse, grid: full}",
        "{dtype: int3, scale: learned, symmetric: false}",
        "{dtype: int8, scale: learned, grid: signed}", "{dtype: int2, scale: absmean}"}) {
    Net net, plain;
    for (const auto& item : net.named_parameters())
      plain.named_parameters()[item.key()].set_data(item.value().detach().clone());
    prepare(net, recipe_of("{match: \"*\", weight: " + weight +
                           "}, {match: words, weight: " + weight + "}"));
    const auto converted = convert(net, at::kFloat);
    ASSERT_EQ(converted.size(), 5u);
    for (const QuantizedWeights& one : converted)
      plain.named_parameters()[one.name + ".weight"].set_data(dequantize_weights(one));
    const at::Tensor ids = at::randint(32, {3, 5});
    EXPECT_TRUE(at::equal(net.forward(ids), plain.forward(ids))) << weight;
  }
}

TEST(Prepare, ConvolutionsAreQuantizedAsMatrices) {
  Image net;
  prepare(net, recipe_of("{match: \"*\", weight: {dtype: int4}}"));
  const auto converted = convert(net);
  EXPECT_EQ(converted[0].codes.sizes(), at::IntArrayRef({8, 27}));
  EXPECT_EQ(converted[0].scale.sizes(), at::IntArrayRef({8, 1}));
  const at::Tensor weight = dequantize_weights(converted[0]).view({8, 3, 3, 3});
  const at::Tensor x = at::randn({2, 3, 4, 4});
  EXPECT_TRUE(at::equal(net.conv->forward(x), at::conv2d(x, weight, net.conv->bias, 1, 1)));
}

TEST(Prepare, ParametersKeepTheirNamesAndTensors) {
  Net net;
  const auto before = net.named_parameters();
  prepare(net, recipe_of("{match: \"*\", weight: {dtype: int4, scale: mse}}"));
  const auto after = net.named_parameters();
  EXPECT_EQ(before.size(), after.size());
  for (const auto& item : before) EXPECT_TRUE(item.value().is_same(after[item.key()]));
}

// The gradients that LibTorch's own autograd gives through the operators.
TEST(Prepare, GradientsAreThoseOfTheOperators) {
  for (const std::string weight : {"{dtype: int3, group_size: 8}", "{dtype: int3, grid: full}",
                                   "{dtype: int3, scale: learned, symmetric: false}"}) {
    nn::Sequential net(nn::Linear(16, 8));
    prepare(*net, recipe_of("{match: \"*\", weight: " + weight + "}"));
    const auto parameters = net->named_parameters();
    const at::Tensor master = parameters["0.weight"].detach().clone().requires_grad_();
    const auto quantizer = prepared_layers(*net)[0].quantizer();
    const QuantSpec& spec = quantizer->weight()->spec();
    at::Tensor scale, zero_point, rounded;
    if (spec.range == Range::learned) {
      scale = parameters["0.weight_scale"].detach().clone().requires_grad_();
      zero_point = parameters["0.weight_zero_point"].detach().clone().requires_grad_();
      rounded = std::get<0>(
          fake_quantize(master, quantizer->weight()->quantizer().text(), scale, zero_point));
    } else {
      rounded =
          std::get<0>(fake_quantize(master, quantizer_of(spec, 3, Quantizer::Mode::minmax).text()));
    }
    const at::Tensor x = at::randn({5, 16}), bias = parameters["0.bias"].detach();
    at::addmm(bias, x, rounded.t()).square().sum().backward();
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch)
      net->forward(x).square().sum().backward();
    EXPECT_TRUE(at::equal(parameters["0.weight"].grad(), 2 * master.grad())) << weight;
    if (!scale.defined()) continue;
    EXPECT_TRUE(at::equal(parameters["0.weight_scale"].grad(), 2 * scale.grad()));
    EXPECT_TRUE(at::equal(parameters["0.weight_zero_point"].grad(), 2 * zero_point.grad()));
  }
}

TEST(Prepare, SharedWeightsReceiveTheGradientsOfAllTheirUses) {
  Net net;
  net.shared->weight = net.words->weight.slice(0, 0, 16).detach().clone().requires_grad_();
  prepare(net, recipe_of("{match: shared, weight: {dtype: int8}}"));
  net.forward(at::randint(32, {2, 3})).sum().backward();
  const auto quantizer = prepared_layers(net)[0].quantizer();
  EXPECT_FALSE(net.shared->weight.grad().defined());  // the leaf has handed it on
  EXPECT_GT(net.words->weight.grad().abs().sum().item<float>(), 0.0f);
}

TEST(Prepare, AGraphMayOutliveItsModule) {
  at::Tensor loss;
  {
    nn::Sequential net(nn::Linear(8, 8));
    prepare(*net, recipe_of("{match: \"*\", weight: {dtype: int4, scale: learned}}"));
    loss = net->forward(at::randn({2, 8})).sum();
  }
  loss.backward();
}

TEST(Prepare, SparseGradientsOfEmbeddingsStaySparseWhereNothingIsClipped) {
  nn::Sequential net(nn::Embedding(nn::EmbeddingOptions(16, 8).sparse(true)));
  prepare(*net, recipe_of("{match: \"type:Embedding\", weight: {dtype: int8}}"));
  net->forward(at::tensor({1, 3})).sum().backward();
  const at::Tensor gradient = net->named_parameters()["0.weight"].grad();
  EXPECT_TRUE(gradient.is_sparse());
  EXPECT_EQ(gradient.to_dense().sum().item<float>(), 16.0f);
}

TEST(Prepare, TrainingWithoutAScheduleStepIsRefused) {
  nn::Sequential net(nn::Linear(8, 8));
  prepare(*net, recipe_of("{match: \"*\", weight: {dtype: int4}}"));
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  const at::Tensor x = at::randn({2, 8});
  net->forward(x).sum().backward();
  optimizer.step();
  EXPECT_EQ(message_of([&] { net->forward(x).sum().backward(); }),
            "The weight of 0 changed after it was rounded; call schedule.step() after "
            "optimizer.step(), before the next forward.");
  net->eval();
  net->forward(x).sum().backward();  // rounded anew
}

// As in gradual unfreezing.
TEST(Prepare, AWeightThatIsUnfrozenLaterTrains) {
  const Recipe recipe = recipe_of("{match: \"*\", weight: {dtype: int4}}");
  const at::Tensor x = at::randn({2, 8});
  const auto run = [&](auto& net, const std::function<void()>& between) {
    at::Tensor master = net[0]->named_parameters()["weight"].set_requires_grad(false);
    prepare(*net, recipe);
    net->forward(x).sum().backward();
    EXPECT_FALSE(master.grad().defined());
    master.set_requires_grad(true);
    between();
    net->forward(x).sum().backward();
    ASSERT_TRUE(master.grad().defined());
    EXPECT_GT(master.grad().abs().sum().template item<float>(), 0.0f);
    master.set_requires_grad(false).mutable_grad().reset();
    between();
    net->forward(x).sum().backward();
    EXPECT_FALSE(master.grad().defined());
  };
  nn::Sequential plain(nn::Linear(8, 8)), drop_in(QuantLinear(8, 8));
  run(plain, [&] { plain->train(); });
  run(drop_in, [] {});
}

TEST(Prepare, ADivergedWeightIsNotTakenForAChangedOne) {
  nn::Sequential net(nn::Linear(8, 8));
  const Recipe recipe = recipe_of("{match: \"*\", weight: {dtype: int4}}");
  prepare(*net, recipe);
  Schedule schedule(*net, recipe, 10);
  {
    const at::NoGradGuard no_grad;
    net->named_parameters()["0.weight"].fill_(NAN);
  }
  schedule.step();
  net->forward(at::randn({2, 8})).sum().backward();
}

TEST(Prepare, LearnedScalesHaveAnOptimizerGroupOfTheirOwn) {
  Net net;
  prepare(net, recipe_of("{match: \"*\", weight: {dtype: int4, scale: learned}}"));
  const auto groups =
      parameter_groups(net, torch::optim::AdamWOptions(1e-3).weight_decay(0.1), 1e-4);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[1].params().size(), 4u);
  EXPECT_EQ(groups[0].params().size(), 9u);  // the shared layer once
  const auto& options = static_cast<const torch::optim::AdamWOptions&>(groups[1].options());
  EXPECT_EQ(options.lr(), 1e-4);
  EXPECT_EQ(options.weight_decay(), 0.0);
  torch::optim::AdamW optimizer(groups, torch::optim::AdamWOptions(1e-3));
  const at::Tensor before = groups[1].params()[0].detach().clone();
  net.forward(at::randint(32, {4, 3})).square().sum().backward();
  optimizer.step();
  EXPECT_FALSE(at::equal(before, groups[1].params()[0]));
}

TEST(Prepare, RefusesWhatItCannotQuantizeAndChangesNothing) {
  const Recipe int8 = recipe_of("{match: \"*\", weight: {dtype: int8}}");
  Net net;
  {
    const at::NoGradGuard no_grad;
    net.shared->weight[0][0] = NAN;
  }
  EXPECT_EQ(message_of([&] { prepare(net, int8); }),
            "The weight of shared must be finite, but has elements that are NaN or infinite.");
  EXPECT_TRUE(prepared_layers(net).empty());

  nn::Sequential plain(nn::Linear(8, 8));
  EXPECT_EQ(message_of([&] {
              prepare(*plain,
                      recipe_of("{match: \"*\", input: {dtype: int8, granularity: token}}"));
            }),
            "0 must be a qat::QuantLinear for its input to be quantized, but is a "
            "torch::nn::Linear, whose forward cannot be reached.");
  prepare(*plain, int8);
  EXPECT_EQ(message_of([&] { prepare(*plain, int8); }), "0 must not be prepared already, but is.");

  nn::Sequential clipped(nn::Embedding(nn::EmbeddingOptions(8, 8).max_norm(1.0)));
  EXPECT_EQ(message_of([&] {
              prepare(*clipped, recipe_of("{match: \"type:Embedding\", weight: {dtype: int8}}"));
            }),
            "The embedding 0 must not renormalise its weight (max_norm) to be quantized.");

  Net tied;
  tied.shared->weight = tied.words->weight;
  EXPECT_EQ(message_of([&] { prepare(tied, recipe_of("{match: words, weight: {dtype: int8}}")); }),
            "words and shared share a weight, so that all or none of them must be quantized, and "
            "alike, but the recipe has no such rule for shared.");

  Plan cached = plan(*nn::Sequential(nn::Linear(8, 8)), int8);
  cached.kv_cache.emplace();
  EXPECT_EQ(message_of([&] { prepare(*nn::Sequential(nn::Linear(8, 8)), cached); }),
            "kv_cache has no attention layers to go to in a LibTorch program: take the section out "
            "of the recipe, and call qat::KvCache in your attention.");

  Net fresh;
  Plan lacking = plan(fresh, int8);
  lacking.layers[0].name = "third";
  EXPECT_EQ(message_of([&] { prepare(fresh, lacking); }),
            "The plan names third, which must be a Linear, Conv2d or Embedding of the module, but "
            "is not.");
}

TEST(Convert, RefusesAScheduleThatHasNotEnded) {
  nn::Sequential net(nn::Linear(8, 8));
  const Recipe recipe = recipe_of("{match: \"*\", weight: {dtype: int4}}",
                                  "schedule: [{until: 50%, weight: int8}, {until: 100%}]");
  prepare(*net, recipe);
  Schedule schedule(*net, recipe, 10);
  EXPECT_EQ(message_of([&] { convert(*net); }),
            "0 must be at its exported width, int4, but its schedule has it at int8; finish the "
            "schedule first.");
  schedule.finish();
  EXPECT_EQ(convert(*net).size(), 1u);
}

}  // namespace
}  // namespace qat
