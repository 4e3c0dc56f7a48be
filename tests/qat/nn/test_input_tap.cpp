#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn.h>

#include "qat/nn/input_tap.h"
#include "qat/nn/prepare.h"

namespace qat {
namespace {

namespace nn = torch::nn;

std::vector<at::Tensor> heard(nn::Sequential& net, const at::Tensor& x) {
  std::vector<at::Tensor> rows;
  const InputTap tap(
      module_layers(*net),
      [&](size_t, const at::Tensor&, const InputTap::Rows& make) { rows.push_back(make()); });
  net->forward(x);
  return rows;
}

TEST(InputTap, HearsLinearLayersOnceEachWhateverTheShapeAndBias) {
  for (const bool bias : {true, false})
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{16}, {3, 16}, {2, 3, 16}}) {
      nn::Sequential net(nn::Linear(nn::LinearOptions(16, 8).bias(bias)));
      const at::Tensor x = at::randn(shape);
      const auto rows = heard(net, x);
      ASSERT_EQ(rows.size(), 1u);
      EXPECT_TRUE(rows[0].is_same(x));
    }
}

TEST(InputTap, HearsNoGradAndInferenceModeAndPreparedLayers) {
  nn::Sequential net(nn::Linear(16, 8));
  const at::Tensor x = at::randn({3, 16});
  {
    const at::NoGradGuard no_grad;
    EXPECT_EQ(heard(net, x).size(), 1u);
  }
  {
    const c10::InferenceMode inference;
    EXPECT_EQ(heard(net, x).size(), 1u);
  }
  prepare(*net, parse_recipe("version: 1\nlayers: [{match: \"*\", weight: {dtype: int4}}]", "r"));
  EXPECT_EQ(heard(net, x).size(), 1u);
}

TEST(InputTap, GivesThePatchesOfConvolutions) {
  for (auto options :
       {nn::Conv2dOptions(3, 5, 3), nn::Conv2dOptions(3, 5, {3, 2}).stride(2).padding(1),
        nn::Conv2dOptions(3, 5, 3).dilation(2).padding(torch::kSame),
        nn::Conv2dOptions(3, 5, 3).padding(1).padding_mode(torch::kReflect)}) {
    nn::Sequential net(nn::Conv2d(options.bias(false)));
    const at::Tensor x = at::randn({2, 3, 9, 8});
    const auto rows = heard(net, x);
    ASSERT_EQ(rows.size(), 1u);
    const at::Tensor weight = net[0]->as<nn::Conv2d>()->weight.flatten(1);
    const at::Tensor expected = net->forward(x).flatten(2);
    EXPECT_TRUE(
        at::allclose(at::matmul(rows[0], weight.t()).transpose(1, 2), expected, 1e-4, 1e-5));
  }
}

TEST(InputTap, LeavesGroupedConvolutionsAndEmbeddingsOut) {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(4, 4, 3).groups(2)));
  EXPECT_TRUE(heard(net, at::randn({1, 4, 5, 5})).empty());
  nn::Sequential words(nn::Embedding(8, 4));
  EXPECT_TRUE(heard(words, at::tensor({1, 2})).empty());
}

TEST(InputTap, SeveralHearEachLayerOnceEach) {
  nn::Sequential net(nn::Linear(16, 8), nn::Linear(8, 4));
  int outer = 0, inner = 0;
  const InputTap tap(module_layers(*net), [&](auto...) { ++outer; });
  {
    const InputTap nested(module_layers(*net), [&](auto...) { ++inner; });
    net->forward(at::randn({3, 16}));
  }
  EXPECT_EQ(outer, 2);
  EXPECT_EQ(inner, 2);
  net->forward(at::randn({3, 16}));
  EXPECT_EQ(outer, 4);
  EXPECT_EQ(inner, 2);
}

TEST(InputTap, IsSilentOnceItIsGone) {
  nn::Sequential net(nn::Linear(16, 8));
  EXPECT_EQ(heard(net, at::randn({3, 16})).size(), 1u);
  net->forward(at::randn({3, 16}));
}

}  // namespace
}  // namespace qat
