#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/checkpoint/formats/compressed_tensors.h"
#include "qat/checkpoint/formats/gguf.h"
#include "qat/checkpoint/formats/modelopt.h"
#include "tests/qat/preset_weights.h"

namespace qat {
namespace {

at::Tensor bytes(const std::vector<int>& values) { return at::tensor(values).to(at::kByte); }

// Two rows whose first block is 0.5, -6, 3, 1 and zeros under a scale of 1.
QuantizedWeights small(const char* preset, int64_t columns) {
  at::Tensor weight = at::zeros({2, columns});
  weight.slice(1, 0, 4).copy_(at::tensor({0.5f, -6.0f, 3.0f, 1.0f}).expand({2, 4}));
  return preset_weights("a", find_preset(preset)->spec, weight);
}

TEST(BlockFloats, TwoNumbersOfFourBitsShareAByte) {
  const at::Tensor codes = at::tensor({0.5f, -6.0f, 3.0f, 1.0f}).view({1, 4});
  const at::Tensor packed = packed_nibbles(codes.to(at::kFloat8_e4m3fn), Grid::e2m1);
  EXPECT_TRUE(at::equal(packed, bytes({0xF1, 0x25}).view({1, 2})));
}

TEST(BlockFloats, FourNumbersOfSixBitsShareThreeBytes) {
  // 1 is 001000, -7.5 is 111111, 0.125 is 000001 and 0 is 000000.
  const at::Tensor codes = at::tensor({1.0f, -7.5f, 0.125f, 0.0f}).view({1, 4});
  const at::Tensor packed = packed_sextets(codes.to(at::kFloat8_e4m3fn), Grid::e2m3);
  const int word = 0b001000 | 0b111111 << 6 | 1 << 12;
  EXPECT_TRUE(at::equal(packed, bytes({word & 255, word >> 8 & 255, word >> 16}).view({1, 3})));
}

// A scale of 6 / 6 = 1 under an outer scale of 2^-8, the power of two above 1 / 448, is the code 256.
TEST(BlockFloats, TheOuterScaleIsADivisorForOneReaderAndAFactorForOthers) {
  const QuantizedWeights layer = small("nvfp4", 64);
  const NamedTensors divided = compressed_tensors_of(layer), multiplied = modelopt_tensors(layer),
                     blocks = gguf_tensors(layer);
  EXPECT_EQ(divided.at("a.weight_global_scale").item<float>(), 256.0f);
  EXPECT_EQ(multiplied.at("a.weight_scale_2").item<float>(), 1.0f / 256);
  EXPECT_EQ(multiplied.at("a.weight_scale_2").dim(), 0);
  EXPECT_EQ(blocks.at("a.scale").item<float>(), 1.0f / 256);
  EXPECT_EQ(divided.at("a.weight_scale")[0][0].to(at::kFloat).item<float>(), 256.0f);
  EXPECT_EQ(divided.at("a.weight_packed")[0][0].item<int>(), 0xF1);
  EXPECT_EQ(multiplied.at("a.weight")[0][1].item<int>(), 0x25);
  // 36 bytes for 64 columns: four scales, then columns j and j + 8 of each sixteen.
  const at::Tensor block = blocks.at("a.weight")[0];
  EXPECT_EQ(block.numel(), 36);
  EXPECT_EQ(block[0].item<int>(), 0x78);  // 256 in E4M3
  EXPECT_EQ(block[4].item<int>(), 0x01);
  EXPECT_EQ(block[5].item<int>(), 0x0F);
}

TEST(BlockFloats, ScalesOfMxAreExponents) {
  const QuantizedWeights layer = small("mxfp4", 32);
  EXPECT_EQ(compressed_tensors_of(layer).at("a.weight_scale")[0][0].item<int>(), 127);
  const at::Tensor block = gguf_tensors(layer).at("a.weight")[0];
  EXPECT_EQ(block.numel(), 17);
  EXPECT_EQ(block[0].item<int>(), 127);
  EXPECT_EQ(block[2].item<int>(), 0x0F);  // columns 1 and 17
}

TEST(BlockFloats, ConfigurationsNameTheScheme) {
  const CheckpointPlan plan{{plan_of(small("nvfp4", 64))}, {"lm_head"}, {}};
  const auto config = nlohmann::json::parse(compressed_tensors_documents(plan).at("config.json"));
  EXPECT_EQ(config["format"], "nvfp4-pack-quantized");
  const auto& weights = config["config_groups"]["group_0"]["weights"];
  EXPECT_EQ(weights["strategy"], "tensor_group");
  EXPECT_EQ(weights["scale_dtype"], "torch.float8_e4m3fn");
  EXPECT_EQ(weights["group_size"], 16);
  const auto quantization =
      nlohmann::json::parse(modelopt_documents(plan).at("hf_quant_config.json"))["quantization"];
  EXPECT_EQ(quantization["quant_algo"], "W4A16_NVFP4");
  EXPECT_EQ(quantization["group_size"], 16);
}

}  // namespace
}  // namespace qat
