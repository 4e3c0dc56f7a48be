#include <gtest/gtest.h>

#include "qat/checkpoint/formats/compressed_tensors.h"
#include "qat/ops/pack.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

QuantizedWeights layer(const std::string& name, int bits, Grid grid = Grid::narrow) {
  QuantSpec spec = group_spec(bits, 32);
  spec.grid = grid;
  return random_layer(name, spec, 16, 64);
}

QuantizedWeights with_input(int bits, Granularity granularity, QuantSpec input) {
  QuantSpec spec = group_spec(bits, 32);
  spec.granularity = granularity;
  QuantizedWeights result = random_layer("a", spec, 16, 64);
  result.input = input;
  return result;
}

QuantizedWeights w8a8() { return with_input(8, Granularity::channel, int8_input(true)); }

QuantSpec fp8_input() {
  QuantSpec input = int8_input(true);
  input.grid = Grid::e4m3;
  return input;
}

TEST(CompressedTensors, PacksSymmetricWeightsWithoutAZeroPoint) {
  const QuantizedWeights q = layer("a", 4);
  const NamedTensors written = compressed_tensors_of(q);
  EXPECT_EQ(written.size(), 3u);
  EXPECT_TRUE(at::equal(written.at("a.weight_packed"), pack(q.codes, 4)));
  EXPECT_TRUE(at::equal(written.at("a.weight_shape"), at::tensor({16, 64}, at::kLong)));
  const auto config = config_of("compressed-tensors", {q}, {"lm_head"});
  EXPECT_EQ(config["format"], "pack-quantized");
  EXPECT_EQ(config["ignore"][0], "lm_head");
  EXPECT_EQ(config["config_groups"]["group_0"]["targets"][0], "Linear");
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["group_size"], 32);
}

TEST(CompressedTensors, PacksZeroPointsDownTheRows) {
  QuantizedWeights q = layer("a", 4, Grid::asymmetric);
  q.zero_point = at::ones({16, 2}, at::kChar);
  const at::Tensor packed = compressed_tensors_of(q).at("a.weight_zero_point");
  EXPECT_EQ(packed.sizes(), (at::IntArrayRef{2, 2}));
  EXPECT_EQ(packed[0][0].item<int32_t>(), static_cast<int32_t>(0x99999999));
}

TEST(CompressedTensors, StoresOddWidthsInTheNextOne) {
  const auto config = config_of("compressed-tensors", {layer("a", 3)});
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
}

TEST(CompressedTensors, From018OnOddWidthsAreTheirOwn) {
  const QuantizedWeights q = layer("a", 3);
  const auto config = config_of("compressed-tensors-0.18", {q});
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 3);
  EXPECT_EQ(config["version"], "0.18.0");
  EXPECT_EQ(config_of("compressed-tensors", {q})["version"], "0.15.0");
  EXPECT_DOUBLE_EQ(bits_per_weight_in(find_format("compressed-tensors-0.18"), q), 3 + 16.0 / 32);
  EXPECT_EQ(size_of_weight_in(find_format("compressed-tensors-0.18"), q.weight, 16, 64),
            3 * 16 * 64 + 16 * 32);
  EXPECT_DOUBLE_EQ(bits_per_weight_in(find_format("compressed-tensors"), q), 4 + 16.0 / 32);
}

// Codes 0 to 9 of 3 bits fill 30 bits of a word, the next lies across two: 12 columns take 2 words.
TEST(CompressedTensors, From018OnWordsEndWithTheCodes) {
  QuantSpec spec = group_spec(3, 12);
  QuantizedWeights q = random_layer("a", spec, 1, 12);
  q.codes = int8_codes({-4, -4, -4, -4, -4, -4, -4, -4, -4, -4, 2, -3}).reshape({1, 12});
  const at::Tensor words = dense_compressed_tensors_of(q).at("a.weight_packed");
  ASSERT_EQ(words.sizes(), (at::IntArrayRef{1, 2}));
  // 2 is 6 unsigned, 110: its low bits end the first word, its high one begins the second.
  EXPECT_EQ(words[0][0].item<int32_t>(), static_cast<int32_t>(0x80000000));
  EXPECT_EQ(words[0][1].item<int32_t>(), 1 | (1 << 1));
}

TEST(CompressedTensors, From018OnOtherLayersAreTheSame) {
  const QuantizedWeights q = layer("a", 4, Grid::asymmetric);
  EXPECT_EQ(config_of("compressed-tensors-0.18", {q}), config_of("compressed-tensors", {q}));
  const NamedTensors dense = dense_compressed_tensors_of(q), padded = compressed_tensors_of(q);
  ASSERT_EQ(dense.size(), padded.size());
  for (const auto& [name, tensor] : padded) EXPECT_TRUE(at::equal(dense.at(name), tensor)) << name;
}

TEST(CompressedTensors, WritesInt8WeightsWithInt8Inputs) {
  EXPECT_EQ(compressed_tensors_of(w8a8()).at("a.weight").scalar_type(), at::kChar);
  const auto config = config_of("compressed-tensors", {w8a8()});
  EXPECT_EQ(config["format"], "int-quantized");
  EXPECT_EQ(config["config_groups"]["group_0"]["input_activations"]["strategy"], "token");
  EXPECT_EQ(config["config_groups"]["group_0"]["input_activations"]["dynamic"], true);
}

// As vLLM's W4A8 schemes read them: codes in bytes beside INT8 inputs, packed beside FP8 ones.
TEST(CompressedTensors, WritesInt4WeightsWithQuantizedInputs) {
  const QuantizedWeights int8_inputs = with_input(4, Granularity::group, int8_input(true));
  EXPECT_TRUE(at::equal(compressed_tensors_of(int8_inputs).at("a.weight"), int8_inputs.codes));
  const auto config = config_of("compressed-tensors", {int8_inputs});
  EXPECT_EQ(config["format"], "int-quantized");
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
  const QuantizedWeights fp8_inputs = with_input(4, Granularity::group, fp8_input());
  EXPECT_EQ(compressed_tensors_of(fp8_inputs).count("a.weight_packed"), 1u);
  const auto packed = config_of("compressed-tensors", {fp8_inputs});
  EXPECT_EQ(packed["format"], "pack-quantized");
  EXPECT_EQ(packed["config_groups"]["group_0"]["input_activations"]["type"], "float");
}

TEST(CompressedTensors, MixesSchemesByConfigGroups) {
  QuantizedWeights other = w8a8();
  other.name = "b";
  const auto config = config_of("compressed-tensors", {layer("a", 4), other, layer("c", 4)});
  EXPECT_EQ(config["format"], "mixed-precision");
  EXPECT_EQ(config["config_groups"].size(), 2u);
}

TEST(CompressedTensors, RefusesWhatTheFormatCannotHold) {
  EXPECT_EQ(refusal_of("compressed-tensors", {with_input(3, Granularity::group, int8_input(true))}),
            "compressed-tensors cannot hold a, because quantized inputs need int8 or int4 weights "
            "and int8 inputs, but they are int3 and int8; safetensors can.");
  QuantizedWeights blocks = layer("a", 4);
  blocks.weight.granularity = Granularity::block;
  blocks.weight.block = {16, 16};
  EXPECT_EQ(refusal_of("compressed-tensors", {blocks}),
            "compressed-tensors cannot hold a, because integer weights must have granularity "
            "tensor, channel or group, but have block; safetensors can.");
  EXPECT_NE(refusal_of("compressed-tensors", {with_input(4, Granularity::group, int8_input(false))})
                .find("dynamic, a scale per token"),
            std::string::npos);
}

TEST(CompressedTensors, RefusesPairsThatNoEngineMultiplies) {
  const auto refusal = [](const QuantizedWeights& q) {
    return refusal_of("compressed-tensors", {q});
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  QuantSpec groups = int8_input(true);
  groups.granularity = Granularity::group;
  groups.group_size = 32;
  EXPECT_TRUE(
      has(refusal(with_input(8, Granularity::channel, groups)), "these have one per group"));
  EXPECT_TRUE(
      has(refusal(with_input(6, Granularity::group, int8_input(true))), "but they are int6"));
  EXPECT_TRUE(has(refusal(with_input(8, Granularity::group, int8_input(true))),
                  "granularity channel or tensor"));
  EXPECT_TRUE(has(refusal(with_input(4, Granularity::group, int8_input(false))),
                  "symmetric and dynamic, a scale per token"));
  QuantizedWeights uneven = w8a8();
  uneven.weight.grid = Grid::asymmetric;
  EXPECT_TRUE(has(refusal(uneven), "must be symmetric"));
  QuantSpec wide = fp8_input();
  wide.grid = Grid::e5m2;
  EXPECT_TRUE(has(refusal(with_input(4, Granularity::group, wide)), "must both be fp8_e4m3"));
  EXPECT_TRUE(
      has(refusal(with_input(8, Granularity::channel, fp8_input())), "fp8_e4m3 or symmetric int4"));
  QuantSpec parts = fp8_input();
  parts.granularity = Granularity::group;
  parts.group_size = 32;
  EXPECT_TRUE(has(refusal(with_input(4, Granularity::group, parts)), "FP8 weights in blocks"));
}

}  // namespace
}  // namespace qat
