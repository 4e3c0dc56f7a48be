#include <gtest/gtest.h>

#include "qat/checkpoint/formats/mlx.h"
#include "qat/recipe/presets.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

// One row of 32 codes, the first of them given and the rest the least of the grid.
QuantizedWeights row(int bits, std::vector<int> first, float scale) {
  QuantizedWeights layer = random_layer("a", group_spec(bits, 32), 1, 32);
  first.resize(32, -(1 << (bits - 1)));
  layer.codes = int8_codes(first).reshape({1, 32});
  layer.scale = at::full({1, 1}, scale);
  return layer;
}

std::vector<uint32_t> words_of(const QuantizedWeights& layer) {
  const at::Tensor weight = mlx_tensors(layer).at("a.weight");
  EXPECT_EQ(weight.scalar_type(), at::kUInt32);
  const at::Tensor words = weight.view(at::kInt).contiguous();
  std::vector<uint32_t> found;
  for (int64_t i = 0; i < words.numel(); ++i)
    found.push_back(static_cast<uint32_t>(words.flatten()[i].item<int32_t>()));
  return found;
}

TEST(Mlx, CodesAreUnsignedTheFirstInTheLowestBits) {
  // 0, 1, 7, 8, 9, 15 once 8 is added.
  const auto words = words_of(row(4, {-8, -7, -1, 0, 1, 7}, 0.5f));
  ASSERT_EQ(words.size(), 4u);
  EXPECT_EQ(words[0], 0x00F98710u);
  EXPECT_EQ(words[1], 0u);
}

TEST(Mlx, WidthsThatNoWordIsAMultipleOfStraddleWords) {
  // The 7th code of 5 bits has bits 30 to 34: two ends in the first word, three in the second.
  const auto five = words_of(row(5, {-16, -16, -16, -16, -16, -16, 15}, 0.5f));
  ASSERT_EQ(five.size(), 5u);
  EXPECT_EQ(five[0], 0xC0000000u);
  EXPECT_EQ(five[1], 0x7u);
  // The 6th of 6 bits has bits 30 to 35.
  const auto six = words_of(row(6, {-32, -32, -32, -32, -32, 31}, 0.5f));
  ASSERT_EQ(six.size(), 6u);
  EXPECT_EQ(six[0], 0xC0000000u);
  EXPECT_EQ(six[1], 0xFu);
  EXPECT_EQ(words_of(row(3, {3, -4, -3}, 0.5f))[0], 0x7u | (1u << 6));
}

// What mx.quantize of MLX 0.32 makes of the numbers 7, 6, ... 0, four times over.
TEST(Mlx, WordsAreThoseOfTheLibrary) {
  std::vector<int> codes;
  for (int i = 0; i < 32; ++i) codes.push_back(3 - i % 8);
  EXPECT_EQ(words_of(row(3, codes, 1.0f)),
            (std::vector<uint32_t>{0x77053977u, 0x39770539u, 0x05397705u}));
}

TEST(Mlx, SevenBitsTakeEight) {
  const QuantizedWeights layer = row(7, {1}, 0.5f);
  EXPECT_EQ(words_of(layer)[0] & 0xFFu, 129u);
  EXPECT_EQ(config_of("mlx", {layer})["bits"], 8);
}

TEST(Mlx, TheBiasIsThatOfCodeZero) {
  const NamedTensors symmetric = mlx_tensors(row(4, {}, 0.75f));
  EXPECT_EQ(symmetric.at("a.biases").item<float>(), -6.0f);
  QuantizedWeights shifted = row(4, {}, 0.75f);
  shifted.weight.grid = Grid::asymmetric;
  shifted.zero_point = at::full({1, 1}, -3, at::kChar);  // 5 unsigned
  EXPECT_EQ(mlx_tensors(shifted).at("a.biases").item<float>(), -3.75f);
}

TEST(Mlx, WideBlocksAreCutIntoItsGroups) {
  QuantSpec spec = group_spec(4, 0);
  spec.granularity = Granularity::channel;
  const QuantizedWeights layer = random_layer("a", spec, 4, 192);
  QuantizedWeights wide = layer;
  wide.scale = layer.scale.to(at::kFloat);
  const at::Tensor scales = mlx_tensors(wide).at("a.scales");
  EXPECT_EQ(scales.sizes(), (at::IntArrayRef{4, 3}));
  EXPECT_TRUE(at::equal(scales, wide.scale.expand({4, 3})));
  EXPECT_EQ(config_of("mlx", {wide})["group_size"], 64);
}

TEST(Mlx, PowersOfTwoAreExactInBfloat16) {
  QuantSpec spec = group_spec(8, 32);
  spec.scale.code = ScaleCode::e8m0_even;
  QuantizedWeights layer = random_layer("a", spec, 2, 32);
  layer.scale = at::tensor({0.125f, 2.0f}).reshape({2, 1}).to(at::kFloat8_e8m0fnu);
  const NamedTensors written = mlx_tensors(layer);
  EXPECT_EQ(written.at("a.scales").scalar_type(), at::kBFloat16);
  EXPECT_EQ(written.at("a.biases")[0].item<float>(), -16.0f);
}

TEST(Mlx, ProductsThatAreNotExactAreRefused) {
  QuantizedWeights layer = row(4, {7}, 0.0f);
  layer.scale = at::full({1, 1}, 1.0078125f).to(at::kBFloat16);  // 1 + 2^-7: times 15 has 11 digits
  try {
    mlx_tensors(layer);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()),
              "MLX computes scale * code + bias in the dtype of the scales, bfloat16, in which "
              "those of a are not exact; export in float32.");
  }
  layer.scale = layer.scale.to(at::kFloat);
  EXPECT_NO_THROW(mlx_tensors(layer));
}

TEST(Mlx, FloatsAreTheirBytes) {
  const QuantSpec spec = find_preset("mxfp4")->spec;
  QuantizedWeights layer;
  layer.name = "a";
  layer.weight = spec;
  std::vector<float> numbers(32, 0.0f);
  numbers[0] = 0.5f;
  numbers[1] = -6.0f;
  numbers[7] = 1.0f;
  layer.codes = at::tensor(numbers).reshape({1, 32}).to(at::kFloat8_e4m3fn);
  layer.scale = at::full({1, 1}, 2.0f).to(at::kFloat8_e8m0fnu);
  EXPECT_EQ(words_of(layer), (std::vector<uint32_t>{0x200000F1u, 0u, 0u, 0u}));
  EXPECT_EQ(mlx_tensors(layer).at("a.scales").item<uint8_t>(), 128);
  EXPECT_EQ(mlx_tensors(layer).count("a.biases"), 0u);
  EXPECT_EQ(config_of("mlx", {layer})["mode"], "mxfp4");
}

TEST(Mlx, TheConfigurationNamesEachLayer) {
  const QuantizedWeights large = random_layer("large", group_spec(4, 64), 64, 64);
  const QuantizedWeights small = random_layer("small", group_spec(8, 32), 8, 64);
  const auto config = config_of("mlx", {small, large}, {"lm_head"});
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["group_size"], 64);
  EXPECT_EQ(config["mode"], "affine");
  EXPECT_EQ(config["small"]["bits"], 8);
  EXPECT_EQ(config["large"]["bits"], 4);
  EXPECT_EQ(config["lm_head"], false);
}

TEST(Mlx, RefusesWhatItHasNoPlaceFor) {
  QuantizedWeights inputs = random_layer("a", group_spec(4, 32), 16, 64);
  inputs.input = int8_input(true);
  EXPECT_NE(refusal_of("mlx", {inputs}).find("inputs are rounded"), std::string::npos);
  EXPECT_NE(refusal_of("mlx", {random_layer("a", group_spec(4, 16), 16, 64)}).find("32, 64 or 128"),
            std::string::npos);
  LayerPlan outer{"a", 64, 64, find_preset("nvfp4")->spec, std::nullopt};
  EXPECT_NE(mlx_refusal(outer).find("no outer scale"), std::string::npos);
  outer.weight->scale.outer_block = {0, 0};
  EXPECT_EQ(mlx_refusal(outer), "");
}

}  // namespace
}  // namespace qat
