#include <gtest/gtest.h>
#include <torch/nn.h>

#include <string>
#include <vector>

#include "qat/nn/module_layers.h"
#include "qat/nn/prepare.h"
#include "tests/qat/message_of.h"
#include "tests/qat/nn/sample_nets.h"

namespace qat {
namespace {

namespace nn = torch::nn;

std::vector<std::string> names_of(const nn::Module& net) {
  std::vector<std::string> names;
  for (const LayerInfo& layer : plannable_layers(net)) names.push_back(layer.name);
  return names;
}

TEST(ModuleLayers, AreFoundHoweverTheyAreHeldAndEachOnce) {
  EXPECT_EQ(names_of(Net()),
            (std::vector<std::string>{"words", "body.0", "body.2", "list.0", "shared"}));
  const auto conv = plannable_layers(Image())[0];
  EXPECT_EQ(conv.type, "Conv2d");
  EXPECT_EQ(conv.in_features, 27);
  EXPECT_EQ(conv.out_features, 8);
}

TEST(ModuleLayers, EmbeddingsAndTiedHeadsAreReachedByNameAlone) {
  Net net;
  net.shared->weight = net.words->weight;
  for (const LayerInfo& layer : plannable_layers(net))
    EXPECT_EQ(layer.by_name_only, layer.name == "words" || layer.name == "shared") << layer.name;
}

TEST(ModuleLayers, ATiedEmbeddingCountsWhereItIsMultiplied) {
  Net net;
  net.shared->weight = net.words->weight;
  for (const LayerInfo& layer : plannable_layers(net)) {
    EXPECT_EQ(layer.counted, layer.name != "words") << layer.name;
    EXPECT_EQ(layer.multiplied, layer.name != "words") << layer.name;
  }
}

struct Mixing : nn::Module {
  nn::Linear linear{register_module("linear", nn::Linear(8, 8))};
  at::Tensor mix = register_parameter("mix", torch::randn({8, 8}));
};

TEST(ModuleLayers, MatricesOfNoLayerAreNamedAndNotPlanned) {
  const auto layers = plannable_layers(Mixing());
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[1].name, "mix");
  EXPECT_FALSE(layers[1].plannable);
  EXPECT_EQ(
      message_of([] {
        Mixing net;
        prepare(net, parse_recipe("version: 1\nlayers: [{match: \"*\", weight: {dtype: "
                                  "int8}}]\n",
                                  "r.yaml"));
      }),
      "r.yaml:2:10: match must reach what torchqat can quantize, but * also reaches mix, 50.0 "
      "% of its weights (parameters that are no layer's weight); leave them by a rule with "
      "weight: float, or by allow_float: true");
}

}  // namespace
}  // namespace qat
