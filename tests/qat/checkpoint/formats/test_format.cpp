#include <gtest/gtest.h>

#include "qat/checkpoint/formats/format.h"
#include "tests/qat/checkpoint/formats/layers.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

QuantizedWeights layer(const std::string& name, int bits = 4) {
  return random_layer(name, group_spec(bits, 32), 32, 64);
}

TEST(Format, AnUnknownNameIsAnsweredWithAllOfThem) {
  EXPECT_THROW(
      {
        try {
          find_format("bin");
        } catch (const std::invalid_argument& error) {
          EXPECT_STREQ(error.what(),
                       "format must be compressed-tensors, compressed-tensors-0.18, gptq, gptq_v2, "
                       "awq, gguf, "
                       "mlx, modelopt, onnx or safetensors, but is bin.");
          throw;
        }
      },
      std::invalid_argument);
}

TEST(Format, ARefusalNamesTheFormatsThatCan) {
  EXPECT_EQ(
      refusal_of("awq", {layer("a", 3)}),
      "awq cannot hold a, because its weights must be int4, but are int3; compressed-tensors, "
      "compressed-tensors-0.18, gptq, gptq_v2, gguf, mlx, onnx and safetensors can.");
  QuantSpec spec = group_spec(4, 32);
  spec.grid = Grid::asymmetric;
  EXPECT_EQ(
      refusal_of("gptq", {random_layer("a", spec, 32, 64)}),
      "gptq cannot hold a, because its grid must be symmetric, but is asymmetric; "
      "compressed-tensors, compressed-tensors-0.18, gptq_v2, awq, gguf, mlx, onnx and safetensors "
      "can.");
}

TEST(Format, LayersOfOtherTypesAreHeldByFewer) {
  LayerPlan conv;
  conv.name = "stem";
  conv.out_features = 8;
  conv.in_features = 32;
  conv.weight = QuantSpec{};
  conv.type = "Conv2d";
  LayerPlan embedding = conv;
  embedding.type = "Embedding";
  std::vector<std::string> held_conv, held_embedding;
  for (const Format& format : formats()) {
    if (refusal(format, conv).empty()) held_conv.push_back(format.name);
    if (refusal(format, embedding).empty()) held_embedding.push_back(format.name);
  }
  EXPECT_EQ(held_conv, (std::vector<std::string>{"onnx", "safetensors"}));
  EXPECT_EQ(held_embedding, (std::vector<std::string>{"gguf", "mlx", "onnx", "safetensors"}));
  EXPECT_EQ(refusal(find_format("gguf"), conv),
            "the layer is of the type Conv2d, and there is a place for Linear, Conv1D, Embedding "
            "and Experts");
}

TEST(Format, NothingQuantizedIsRefused) {
  EXPECT_EQ(refusal_of("gguf", {}), "gguf needs at least one quantized layer, but there is none.");
}

TEST(Format, LayersThatEnginesFuseMustAgree) {
  EXPECT_EQ(refusal_of("gptq", {layer("m.q_proj"), layer("m.k_proj"), layer("m.v_proj")}), "");
  for (const char* format : {"compressed-tensors", "gptq", "gptq_v2", "awq", "modelopt"})
    EXPECT_EQ(
        refusal_of(format, {layer("m.gate_proj")}, {"m.up_proj"}),
        "m.gate_proj and m.up_proj must share one scheme, because engines fuse them, but they "
        "differ.")
        << format;
  EXPECT_NE(refusal_of("gptq", {layer("m.q_proj", 4), layer("m.k_proj", 8)}), "");
  // llama.cpp and LibTorch programs fuse nothing.
  EXPECT_EQ(refusal_of("gguf", {layer("m.q_proj", 4), layer("m.k_proj", 8)}), "");
  EXPECT_EQ(refusal_of("safetensors", {layer("m.q_proj", 4), layer("m.k_proj", 8)}), "");
}

TEST(Format, OneScaleForALayerThatEnginesFuseIsWarnedOf) {
  QuantizedWeights whole = layer("m.q_proj");
  EXPECT_EQ(fusion_warning({{plan_of(whole)}, {}, {}}), "");
  whole.weight.granularity = Granularity::tensor;
  EXPECT_EQ(fusion_warning({{plan_of(layer("m.o_proj")), plan_of(whole)}, {}, {}}).substr(0, 8),
            "m.q_proj");
  whole.name = "m.o_proj";
  EXPECT_EQ(fusion_warning({{plan_of(whole)}, {}, {}}), "");
}

TEST(Format, HowAScaleWasFoundIsNoDifference) {
  QuantizedWeights learned = layer("m.q_proj");
  learned.weight.range = Range::learned;
  EXPECT_EQ(refusal_of("gptq", {learned, layer("m.k_proj")}), "");
}

TEST(Format, ValuesOfBlocksAreSpreadOverGroups) {
  QuantSpec spec = group_spec(4, 64);
  QuantizedWeights layer = random_layer("a", spec, 2, 128);
  layer.scale = at::tensor({1.0f, 2.0f, 3.0f, 4.0f}).reshape({2, 2});
  EXPECT_TRUE(at::equal(per_group(layer.scale, layer, 32),
                        at::tensor({1.f, 1.f, 2.f, 2.f, 3.f, 3.f, 4.f, 4.f}).reshape({2, 4})));
  layer.weight.granularity = Granularity::tensor;
  EXPECT_TRUE(at::equal(per_group(at::full({1, 1}, 5.0f), layer, 32), at::full({2, 4}, 5.0f)));
}

// As training on a GPU leaves them.
TEST(Format, TakesTensorsOfAnyDevice) {
  const auto moved = [](std::optional<at::Tensor>& tensor) {
    if (tensor) tensor = tensor->to(other_device());
  };
  for (const Format& format : formats())
    for (const Grid grid : {Grid::narrow, Grid::asymmetric})
      for (const Granularity granularity :
           {Granularity::tensor, Granularity::channel, Granularity::group, Granularity::block}) {
        QuantSpec spec = group_spec(4, 32);
        spec.grid = grid;
        spec.granularity = granularity;
        spec.block = {16, 32};
        QuantizedWeights layer = random_layer("a", spec, 32, 64);
        if (!refusal(format, plan_of(layer)).empty()) continue;
        layer.scale.fill_(0.5);  // whose least levels are float16 numbers
        const NamedTensors expected = format.tensors(layer);
        layer.codes = layer.codes.to(other_device());
        layer.scale = layer.scale.to(other_device());
        moved(layer.zero_point);
        const NamedTensors found = format.tensors(layer);
        ASSERT_EQ(found.size(), expected.size());
        for (const auto& [name, tensor] : expected)
          EXPECT_TRUE(at::equal(found.at(name).cpu(), tensor)) << format.name << " " << name;
      }
}

}  // namespace
}  // namespace qat
