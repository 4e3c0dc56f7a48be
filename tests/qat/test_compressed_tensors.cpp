#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "ops/pack.h"
#include "qat/formats/compressed_tensors.h"

namespace qat {
namespace {

QuantizedWeights layer(const std::string& name, int bits, Grid grid = Grid::narrow) {
  QuantSpec spec;
  spec.bits = bits;
  spec.grid = grid;
  spec.granularity = Granularity::group;
  spec.group_size = 32;
  return quantize_weights(name, spec, at::randn({16, 64}), at::full({16, 2}, 0.25f),
                          at::full({16, 2}, grid == Grid::asymmetric ? 1 : 0, at::kChar),
                          at::kFloat);
}

QuantizedWeights int8_layer(const std::string& name) {
  QuantizedWeights result =
      quantize_weights(name, QuantSpec{}, at::randn({16, 64}), at::full({16, 1}, 0.25f),
                       at::zeros({16, 1}, at::kChar), at::kFloat);
  QuantSpec input;
  input.granularity = Granularity::token;
  input.dynamic = true;
  result.input = input;
  return result;
}

std::string refusal(const QuantizedWeights& bad) {
  try {
    to_compressed_tensors({bad}, {});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(CompressedTensors, PacksSymmetricWeightsWithoutAZeroPoint) {
  const QuantizedWeights q = layer("a", 4);
  const auto written = to_compressed_tensors({q}, {"lm_head"});
  EXPECT_EQ(written.tensors.size(), 3u);
  EXPECT_TRUE(at::equal(written.tensors.at("a.weight_packed"), pack(q.codes, 4)));
  EXPECT_TRUE(at::equal(written.tensors.at("a.weight_shape"), at::tensor({16, 64}, at::kLong)));
  const auto config = nlohmann::json::parse(written.quantization_config);
  EXPECT_EQ(config["format"], "pack-quantized");
  EXPECT_EQ(config["ignore"][0], "lm_head");
  EXPECT_EQ(config["config_groups"]["group_0"]["targets"][0], "Linear");
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["group_size"], 32);
}

TEST(CompressedTensors, PacksZeroPointsDownTheRows) {
  const QuantizedWeights q = layer("a", 4, Grid::asymmetric);
  const at::Tensor packed = to_compressed_tensors({q}, {}).tensors.at("a.weight_zero_point");
  EXPECT_EQ(packed.sizes(), (at::IntArrayRef{2, 2}));
  EXPECT_EQ(packed[0][0].item<int32_t>(), static_cast<int32_t>(0x99999999));
}

TEST(CompressedTensors, StoresOddWidthsInTheNextOne) {
  const auto config =
      nlohmann::json::parse(to_compressed_tensors({layer("a", 3)}, {}).quantization_config);
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
}

TEST(CompressedTensors, WritesInt8WeightsWithInt8Inputs) {
  const auto written = to_compressed_tensors({int8_layer("a")}, {});
  EXPECT_EQ(written.tensors.at("a.weight").scalar_type(), at::kChar);
  const auto config = nlohmann::json::parse(written.quantization_config);
  EXPECT_EQ(config["format"], "int-quantized");
  EXPECT_EQ(config["config_groups"]["group_0"]["input_activations"]["strategy"], "token");
  EXPECT_EQ(config["config_groups"]["group_0"]["input_activations"]["dynamic"], true);
}

TEST(CompressedTensors, MixesSchemesByConfigGroups) {
  const auto config = nlohmann::json::parse(
      to_compressed_tensors({layer("a", 4), int8_layer("b"), layer("c", 4)}, {})
          .quantization_config);
  EXPECT_EQ(config["format"], "mixed-precision");
  EXPECT_EQ(config["config_groups"].size(), 2u);
}

TEST(CompressedTensors, RefusesWhatTheFormatCannotHold) {
  QuantizedWeights four_bit_inputs = layer("a", 4);
  four_bit_inputs.input = int8_layer("b").input;
  EXPECT_EQ(refusal(four_bit_inputs),
            "compressed-tensors cannot hold a: quantized inputs need int8 weights and int8 inputs, "
            "but they are int4 and int8.");
  QuantizedWeights blocks = layer("a", 4);
  blocks.weight.granularity = Granularity::block;
  EXPECT_EQ(refusal(blocks),
            "compressed-tensors cannot hold a: integer weights must have granularity tensor, "
            "channel or group, but have block.");
}

TEST(CompressedTensors, FindsFusedLayersThatDiffer) {
  EXPECT_TRUE(
      fusion_problems({layer("m.q_proj", 4), layer("m.k_proj", 4), layer("m.v_proj", 4)}, {})
          .empty());
  EXPECT_EQ(fusion_problems({layer("m.gate_proj", 4), layer("m.up_proj", 8)}, {}).front(),
            "m.gate_proj and m.up_proj must share one scheme, because engines fuse them, but they "
            "differ.");
  EXPECT_EQ(fusion_problems({layer("m.q_proj", 4)}, {"m.k_proj"}).size(), 1u);
}

}  // namespace
}  // namespace qat
