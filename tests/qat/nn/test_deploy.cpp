#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>

#include <cstdlib>
#include <filesystem>

#include "qat/checkpoint/checkpoint.h"
#include "qat/nn/calibrate.h"
#include "qat/nn/deploy.h"
#include "qat/nn/layers.h"
#include "qat/nn/packed_linear.h"
#include "qat/nn/prepare.h"
#include "tests/qat/message_of.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

namespace nn = torch::nn;

class Deploy : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/qat_deploy_XXXXXX";
    folder = mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::string folder;
};

template <typename Linear>
struct Net : nn::Module {
  nn::Embedding words{register_module("words", nn::Embedding(32, 48))};
  Linear first{register_module("first", Linear(48, 64))};
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({64})))};
  Linear second{register_module("second", Linear(64, 8))};
  at::Tensor forward(const at::Tensor& ids) {
    return second->forward(norm->forward(at::relu(first->forward(words->forward(ids)))));
  }
};

Recipe recipe(const std::string& input = "") {
  return parse_recipe(
      "version: 1\nlayers: [{match: \"*\", weight: {dtype: int4, group_size: 16, scale: mse}" +
          input + "}, {match: words, weight: {dtype: int8}}]\n",
      "r.yaml");
}

TEST_F(Deploy, APlainModuleGetsTheWeightsOfTrainingBitForBit) {
  Net<nn::Linear> net, other;
  prepare(net, recipe());
  export_folder(net, folder);
  load(other, folder);
  const at::Tensor ids = at::randint(32, {4, 7});
  net.eval();
  EXPECT_TRUE(at::equal(net.forward(ids), other.forward(ids)));
  for (const auto* one : {static_cast<nn::Module*>(&net), static_cast<nn::Module*>(&other)}) {
    const Verification found = verify(*one, folder);
    EXPECT_TRUE(found.equal()) << (found.equal() ? "" : found.differences[0]);
    EXPECT_EQ(found.layers, 3);
  }
}

TEST_F(Deploy, APackedModuleHasTheSameWeightsAndAgrees) {
  Net<nn::Linear> net;
  prepare(net, recipe());
  export_folder(net, folder);
  Net<PackedLinear> packed;
  load(packed, folder);
  EXPECT_TRUE(verify(packed, folder).equal());
  const at::Tensor ids = at::randint(32, {4, 7});
  net.eval();
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::allclose(net.forward(ids), packed.forward(ids), 1e-5, 1e-5));
  const std::string again = folder + "/again";
  export_folder(packed, again);
  EXPECT_EQ(verify(packed, again).differences, std::vector<std::string>{});
}

TEST_F(Deploy, CalibratedInputsComeAlong) {
  for (const std::string input : {", input: {dtype: int8, granularity: tensor}",
                                  ", input: {dtype: int8, granularity: tensor, symmetric: false}",
                                  ", input: {dtype: int8, granularity: token}"}) {
    Net<QuantLinear> net, other;
    prepare(net, recipe(input));
    const at::Tensor ids = at::randint(32, {4, 7});
    calibrate(net, {ids}, [&](const at::Tensor& x) { net.forward(x); }, recipe().initialize);
    export_folder(net, folder);
    load(other, folder);
    Net<PackedLinear> packed;
    load(packed, folder);
    net.eval();
    const at::NoGradGuard no_grad;
    const at::Tensor expected = net.forward(ids);
    EXPECT_TRUE(at::equal(expected, other.forward(ids))) << input;
    // A sum that ends on another side of a border moves an input by one level.
    EXPECT_LT((packed.forward(ids) - expected).abs().max().item<float>(), 0.05) << input;
    Net<nn::Linear> plain;
    EXPECT_EQ(message_of([&] { load(plain, folder); }),
              folder +
                  ": first must be a qat::PackedLinear or qat::QuantLinear, since the "
                  "checkpoint quantizes its input.");
  }
}

TEST_F(Deploy, ExportsInTheDtypeAndFormatThatIsAskedFor) {
  Net<nn::Linear> net;
  prepare(net,
          parse_recipe(
              "version: 1\nlayers: [{match: \"*\", weight: {dtype: int4, group_size: 16}}]", "r"));
  export_folder(net, folder, {.dtype = at::kBFloat16});
  const Checkpoint read = load_checkpoint(folder);
  EXPECT_EQ(read.layers[0].scale.scalar_type(), at::kBFloat16);
  EXPECT_EQ(read.others.at("norm.weight").scalar_type(), at::kBFloat16);
  EXPECT_TRUE(verify(net, folder).equal());
  const std::string other = folder + "/compressed";
  export_folder(net, other, {.format = "compressed-tensors", .dtype = at::kBFloat16});
  EXPECT_EQ(load_safetensors(other + "/model.safetensors").count("first.weight_packed"), 1u);
  EXPECT_THROW(verify(net, other), FileError);
}

TEST_F(Deploy, ProgramsThatCallTheOldNameAreServed) {
  Net<nn::Linear> net;
  prepare(net, recipe());
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  export_safetensors(net, folder, at::kFloat, "compressed-tensors");
#pragma GCC diagnostic pop
  EXPECT_EQ(load_safetensors(folder + "/model.safetensors").count("first.weight_packed"), 1u);
}

TEST_F(Deploy, WhatDiffersIsNamed) {
  Net<nn::Linear> net;
  prepare(net, recipe());
  export_folder(net, folder);
  {
    const at::NoGradGuard no_grad;
    net.norm->bias.add_(1.0);
    net.named_parameters()["first.weight"].mul_(-1.0);
  }
  net.eval();
  EXPECT_EQ(verify(net, folder).differences,
            (std::vector<std::string>{"first.codes differs.", "norm.bias differs."}));
}

TEST_F(Deploy, WhatDoesNotFitIsRefusedAndChangesNothing) {
  Net<nn::Linear> net;
  prepare(net, recipe());
  export_folder(net, folder);
  struct Other : nn::Module {
    nn::Embedding words{register_module("words", nn::Embedding(32, 48))};
    nn::Linear first{register_module("first", nn::Linear(48, 60))};
  } other;
  const at::Tensor before = other.words->weight.detach().clone();
  EXPECT_EQ(message_of([&] { load(other, folder); }),
            folder + ": first has [64, 48] codes, but its weight is [60, 48].");
  EXPECT_TRUE(at::equal(before, other.words->weight));
  EXPECT_EQ(message_of([&] { load(net, folder); }),
            folder + ": first must be loaded before it is prepared.");
  Net<nn::Linear> unprepared;
  EXPECT_EQ(message_of([&] { export_folder(unprepared, folder); }),
            "The module must have quantized layers, but has none; call qat::prepare first.");
}

TEST_F(Deploy, ModulesOfAnotherDeviceAreExportedLoadedAndVerified) {
  for (const std::string input : {"", ", input: {dtype: int8, granularity: tensor}"}) {
    Net<QuantLinear> net, other;
    prepare(net, recipe(input));
    const at::Tensor ids = at::randint(32, {4, 7});
    calibrate(net, {ids}, [&](const at::Tensor& x) { net.forward(x); }, recipe().initialize);
    export_folder(net, folder);
    other.to(other_device());
    load(other, folder);
    EXPECT_EQ(verify(other, folder).differences, std::vector<std::string>{}) << input;
    Net<PackedLinear> packed;
    packed.to(other_device());
    load(packed, folder);
    EXPECT_EQ(verify(packed, folder).differences, std::vector<std::string>{}) << input;
    const std::string again = folder + "/again";
    export_folder(packed, again);
    EXPECT_EQ(verify(packed, again).differences, std::vector<std::string>{}) << input;
    packed.to(at::kCPU);  // whole: nothing of it is left behind
    const at::NoGradGuard no_grad;
    EXPECT_NO_THROW(packed.forward(ids)) << input;
  }
}

TEST_F(Deploy, AModuleIsPreparedAndExportedOnAnotherDevice) {
  Net<nn::Linear> net, there;
  for (const auto& item : net.named_parameters())
    there.named_parameters()[item.key()].set_data(item.value().detach().clone());
  there.to(other_device());
  prepare(net, recipe());
  prepare(there, recipe());
  export_folder(there, folder);
  EXPECT_EQ(verify(there, folder).differences, std::vector<std::string>{});
  EXPECT_EQ(verify(net, folder).differences, std::vector<std::string>{});
}

}  // namespace
}  // namespace qat
