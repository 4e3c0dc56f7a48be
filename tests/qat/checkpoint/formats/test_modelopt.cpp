#include <gtest/gtest.h>

#include "qat/checkpoint/formats/modelopt.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

QuantizedWeights fp8_layer(Granularity granularity, std::optional<QuantSpec> input) {
  QuantSpec spec;
  spec.grid = Grid::e4m3;
  spec.granularity = granularity;
  spec.block = {128, 128};
  QuantizedWeights layer;
  layer.name = "a";
  layer.weight = spec;
  layer.input = input;
  layer.codes = at::randn({128, 128}).to(at::kFloat8_e4m3fn);
  layer.scale = at::rand({granularity == Granularity::channel ? 128 : 1, 1}).to(at::kBFloat16);
  if (input && !input->dynamic) layer.input_scale = at::ones({1});
  return layer;
}

QuantSpec fp8_input(bool dynamic) {
  QuantSpec input = int8_input(dynamic);
  input.grid = Grid::e4m3;
  return input;
}

nlohmann::json quantization_of(const std::vector<QuantizedWeights>& layers) {
  CheckpointPlan plan{{}, {"lm_head"}, {}};
  for (const QuantizedWeights& layer : layers) plan.layers.push_back(plan_of(layer));
  return nlohmann::json::parse(modelopt_documents(plan).at("hf_quant_config.json"))["quantization"];
}

TEST(ModelOpt, Int4PacksTwoRowsInTwosComplement) {
  QuantizedWeights q = random_layer("a", group_spec(4, 32), 2, 32);
  q.codes = at::cat({at::full({1, 32}, -3, at::kChar), at::full({1, 32}, 5, at::kChar)});
  const NamedTensors written = modelopt_tensors(q);
  EXPECT_EQ(written.at("a.weight").sizes(), (at::IntArrayRef{1, 32}));
  EXPECT_TRUE(written.at("a.weight").eq(0x5D).all().item<bool>());
  EXPECT_TRUE(written.at("a.pre_quant_scale").eq(1).all().item<bool>());
  const auto quantization = quantization_of({q});
  EXPECT_EQ(quantization["quant_algo"], "W4A16_AWQ");
  EXPECT_EQ(quantization["group_size"], 32);
  EXPECT_EQ(quantization["pre_quant_scale"], true);
  EXPECT_EQ(quantization["exclude_modules"][0], "lm_head");
}

TEST(ModelOpt, Fp8ByItsNames) {
  const QuantizedWeights tensor = fp8_layer(Granularity::tensor, fp8_input(false));
  EXPECT_EQ(quantization_of({tensor})["quant_algo"], "FP8");
  EXPECT_EQ(modelopt_tensors(tensor).at("a.weight_scale").dim(), 0);
  EXPECT_EQ(modelopt_tensors(tensor).at("a.input_scale").dim(), 0);
  const QuantizedWeights channel = fp8_layer(Granularity::channel, fp8_input(true));
  EXPECT_EQ(quantization_of({channel})["quant_algo"], "FP8_PER_CHANNEL_PER_TOKEN");
  EXPECT_EQ(modelopt_tensors(channel).at("a.weight_scale").sizes(), at::IntArrayRef({128}));
  EXPECT_EQ(quantization_of({fp8_layer(Granularity::block, {})})["quant_algo"], "FP8_PB_WO");
}

TEST(ModelOpt, Int8ByItsNames) {
  QuantSpec spec;
  QuantizedWeights layer = random_layer("a", spec, 32, 64);
  EXPECT_EQ(quantization_of({layer})["quant_algo"], "W8A16");
  layer.input = int8_input(false);
  EXPECT_EQ(quantization_of({layer})["quant_algo"], "W8A8_SQ_PER_CHANNEL");
}

TEST(ModelOpt, MixedOnesAreListed) {
  const auto quantization = quantization_of(
      {random_layer("a", group_spec(4, 32), 2, 32), random_layer("b", QuantSpec{}, 32, 64)});
  EXPECT_EQ(quantization["quant_algo"], "MIXED_PRECISION");
  EXPECT_EQ(quantization["quantized_layers"]["a"]["quant_algo"], "W4A16_AWQ");
  EXPECT_EQ(quantization["quantized_layers"]["b"]["quant_algo"], "W8A16");
}

TEST(ModelOpt, SaysWhatItTakes) {
  EXPECT_NE(refusal_of("modelopt", {fp8_layer(Granularity::tensor, {})})
                .find("fp8_e4m3 per tensor with calibrated inputs"),
            std::string::npos);
}

}  // namespace
}  // namespace qat
