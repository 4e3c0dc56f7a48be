#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/nn.h>
#include <torch/serialize.h>

#include <sstream>

#include "qat/nn/layers.h"
#include "qat/nn/packed_linear.h"
#include "qat/nn/prepare.h"
#include "tests/qat/message_of.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

namespace nn = torch::nn;

QuantizedWeights weights_of(nn::Sequential& net, const std::string& layer) {
  prepare(*net, parse_recipe("version: 1\nlayers: [{match: \"*\", " + layer + "}]\n", "r.yaml"));
  return convert(*net, at::kFloat)[0];
}

const std::vector<std::string> kSpecs{
    "weight: {dtype: int4, group_size: 16}",
    "weight: {dtype: int4, symmetric: false, group_size: 16}",
    "weight: {dtype: int3}",
    "weight: {dtype: int2, granularity: tensor}",
    "weight: {dtype: int8}",
    "weight: {dtype: int8, granularity: block, block: [8, 16]}",
    "weight: {dtype: int6, group_size: 24}",
    "weight: {dtype: int4}, input: {dtype: int8, granularity: token}"};

TEST(PackedLinear, GivesTheWeightsBackBitForBit) {
  for (const std::string& spec : kSpecs) {
    nn::Sequential net(QuantLinear(48, 24));
    const QuantizedWeights weights = weights_of(net, spec);
    const QuantizedWeights back = PackedLinear(weights, at::Tensor())->weights("0");
    EXPECT_TRUE(at::equal(back.codes, weights.codes)) << spec;
    EXPECT_TRUE(at::equal(back.scale, weights.scale)) << spec;
    EXPECT_EQ(back.zero_point.has_value(), weights.zero_point.has_value()) << spec;
    if (back.zero_point) {
      EXPECT_TRUE(at::equal(*back.zero_point, *weights.zero_point)) << spec;
    }
    EXPECT_EQ(back.weight, weights.weight) << spec;
  }
}

TEST(PackedLinear, AgreesWithTheTrainedLayer) {
  for (const std::string& spec : kSpecs) {
    nn::Sequential net(QuantLinear(48, 24));
    const QuantizedWeights weights = weights_of(net, spec);
    net->eval();
    PackedLinear packed(weights, net->named_parameters()["0.bias"]);
    for (const int64_t rows : {1, 3, 20}) {
      const at::Tensor x = at::randn({rows, 48});
      const at::Tensor expected = net->forward(x), found = packed->forward(x);
      EXPECT_LT((found - expected).abs().max().item<float>(),
                1e-5 * (1 + expected.abs().max().item<float>()))
          << spec;
    }
  }
}

TEST(PackedLinear, KeepsItsWeightInAFractionOfTheMemory) {
  nn::Sequential net(QuantLinear(nn::LinearOptions(256, 128).bias(false)));
  PackedLinear packed(weights_of(net, "weight: {dtype: int4, group_size: 32}"), at::Tensor());
  EXPECT_EQ(packed->bytes(), 256 * 128 / 2 + 256 / 32 * 128 * 4);
}

TEST(PackedLinear, GoesThroughSaveAndLoad) {
  nn::Sequential net(QuantLinear(48, 24));
  PackedLinear packed(weights_of(net, kSpecs[1]), net->named_parameters()["0.bias"]);
  std::stringstream state;
  torch::save(packed, state);
  PackedLinear other(48, 24);
  torch::load(other, state);
  const at::Tensor x = at::randn({2, 48});
  EXPECT_TRUE(at::equal(other->forward(x), packed->forward(x)));
}

TEST(PackedLinear, IsClonedAndMoved) {
  nn::Sequential net(QuantLinear(48, 24));
  PackedLinear packed(weights_of(net, kSpecs[1]), net->named_parameters()["0.bias"]);
  const at::Tensor x = at::randn({2, 48});
  const auto clone = std::dynamic_pointer_cast<PackedLinearImpl>(packed->clone());
  EXPECT_TRUE(at::equal(clone->forward(x), packed->forward(x)));
  packed->to(at::kCPU, at::kBFloat16);
  EXPECT_EQ(packed->bias.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(packed->weights("0").codes, clone->weights("0").codes));
  packed->to(at::kCPU);
  EXPECT_TRUE(at::allclose(packed->forward(x), clone->forward(x), 1e-2, 1e-2));
}

TEST(PackedLinear, SaysWhatItLacks) {
  PackedLinear empty(48, 24);
  EXPECT_THROW(empty->forward(at::randn({1, 48})), std::logic_error);
  nn::Sequential net(QuantLinear(24, 24));
  EXPECT_THROW(empty->set_weights(weights_of(net, "weight: {dtype: int8}")), std::invalid_argument);
  nn::Sequential fp8(QuantLinear(48, 24));
  EXPECT_THROW(empty->set_weights(weights_of(fp8, "weight: {dtype: fp8_e4m3}")),
               std::invalid_argument);
}

TEST(PackedLinear, TakesWeightsOfAnyDevice) {
  for (const size_t spec : {1, 7}) {
    nn::Sequential net(QuantLinear(48, 24));
    QuantizedWeights weights = weights_of(net, kSpecs[spec]);
    const at::Tensor x = at::randn({2, 48});
    const at::Tensor expected = PackedLinear(weights, at::Tensor())->forward(x);
    weights.codes = weights.codes.to(other_device());
    weights.scale = weights.scale.to(other_device());
    if (weights.zero_point) weights.zero_point = weights.zero_point->to(other_device());
    PackedLinear packed(weights, at::Tensor());
    packed->to(at::kCPU);
    EXPECT_TRUE(at::equal(packed->forward(x), expected));
  }
}

TEST(PackedLinear, RunsOnACpuAloneAndSaysSo) {
  nn::Sequential net(QuantLinear(48, 24));
  PackedLinear packed(weights_of(net, kSpecs[0]), at::Tensor());
  packed->to(other_device());
  EXPECT_EQ(
      message_of([&] { packed->forward(at::randn({2, 48}).to(other_device())); }).substr(0, 87),
      "[packed_linear] everything must be on a CPU, where packed products run, but is on hpu:0");
}

TEST(PackedLinear, RefusesAnInputThatWantsAGradient) {
  for (const size_t spec : {0, 7}) {
    nn::Sequential net(QuantLinear(48, 24));
    PackedLinear packed(weights_of(net, kSpecs[spec]), at::Tensor());
    const at::Tensor x = at::randn({2, 48}).requires_grad_();
    EXPECT_EQ(message_of([&] { packed->forward(x); }).substr(0, 66),
              "[packed_linear] x must not require a gradient, since packed weight");
    const at::NoGradGuard no_grad;
    EXPECT_FALSE(packed->forward(x).requires_grad());
  }
}

}  // namespace
}  // namespace qat
