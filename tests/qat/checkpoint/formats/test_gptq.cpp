#include <gtest/gtest.h>

#include "qat/checkpoint/formats/gptq.h"
#include "qat/ops/pack.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

QuantizedWeights layer(int bits, bool symmetric = true, const std::string& name = "a") {
  QuantSpec spec = group_spec(bits, 32);
  if (!symmetric) spec.grid = Grid::asymmetric;
  return random_layer(name, spec, 32, 64);
}

// What each field of [rows, words] holds, read bit by bit from the bytes.
int64_t field(const at::Tensor& words, int64_t row, int64_t index, int bits) {
  const at::Tensor bytes = words[row].contiguous().view(at::kByte);
  int64_t value = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int64_t at = index * bits + bit;
    value |= ((bytes[at / 8].item<int64_t>() >> (at % 8)) & 1) << bit;
  }
  return value;
}

TEST(GptqFormat, SymmetricZeroPointsAreTheConstantsOfTheFormat) {
  const std::vector<std::pair<int, std::pair<int64_t, int64_t>>> expected{
      {2, {0x55555555, 0xAAAAAAAA}}, {4, {0x77777777, 0x88888888}}, {8, {0x7F7F7F7F, 0x80808080}}};
  for (const auto& [bits, words] : expected) {
    const QuantizedWeights q = layer(bits);
    EXPECT_TRUE(
        gptq_tensors(q).at("a.qzeros").eq(static_cast<int32_t>(words.first)).all().item<bool>());
    EXPECT_TRUE(gptq_v2_tensors(q)
                    .at("a.qzeros")
                    .eq(static_cast<int32_t>(words.second))
                    .all()
                    .item<bool>());
  }
  const at::Tensor three = gptq_tensors(layer(3)).at("a.qzeros")[0];
  for (int word = 0; word < 3; ++word)
    EXPECT_EQ(three[word].item<int32_t>(), static_cast<int32_t>(std::vector<uint32_t>{
                                               0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D}[word]));
}

TEST(GptqFormat, CodesLieAlongTheInputAxis) {
  for (const int bits : {2, 3, 4, 8}) {
    const QuantizedWeights q = layer(bits, false);
    const NamedTensors written = gptq_v2_tensors(q);
    EXPECT_EQ(written.at("a.qweight").sizes(), at::IntArrayRef({64 * bits / 32, 32}));
    EXPECT_EQ(written.at("a.scales").sizes(), at::IntArrayRef({2, 32}));
    const at::Tensor rows = written.at("a.qweight").t().contiguous();
    const int64_t half = int64_t{1} << (bits - 1);
    for (const int64_t column : {0, 9, 10, 21, 31, 32, 63}) {
      EXPECT_EQ(field(rows, 5, column, bits), q.codes[5][column].item<int64_t>() + half) << bits;
    }
    for (const int64_t column : {0, 10, 31})
      EXPECT_EQ(field(written.at("a.qzeros"), 1, column, bits),
                (*q.zero_point)[column][1].item<int64_t>() + half)
          << bits;
  }
}

TEST(GptqFormat, GroupsAreInOrder) {
  const at::Tensor groups = gptq_tensors(layer(4)).at("a.g_idx");
  EXPECT_EQ(groups.scalar_type(), at::kInt);
  EXPECT_TRUE(at::equal(groups, at::arange(64).div(32, "floor").to(at::kInt)));
  QuantSpec spec = group_spec(4, 0);
  spec.granularity = Granularity::channel;
  EXPECT_FALSE(gptq_tensors(random_layer("a", spec, 32, 64)).at("a.g_idx").any().item<bool>());
}

TEST(GptqFormat, TheConfigurationIsWrittenTwice) {
  const CheckpointPlan plan{{plan_of(layer(4))}, {"lm_head"}, {}};
  const Documents documents = gptq_documents(plan);
  EXPECT_EQ(documents.at("config.json"), documents.at("quantize_config.json"));
  const auto config = config_of("gptq", {layer(4)}, {"lm_head"});
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["group_size"], 32);
  EXPECT_EQ(config["sym"], true);
  EXPECT_EQ(config["desc_act"], false);
  EXPECT_EQ(config["checkpoint_format"], "gptq");
  EXPECT_EQ(config_of("gptq_v2", {layer(4)})["checkpoint_format"], "gptq_v2");
  EXPECT_FALSE(config.contains("dynamic"));
}

TEST(GptqFormat, LayersThatDifferAreNamed) {
  const auto config =
      config_of("gptq", {layer(4), layer(4, true, "b"), layer(8, true, "m.c")}, {"lm_head", "m.d"});
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["dynamic"]["+:^m\\.c$"]["bits"], 8);
  EXPECT_TRUE(config["dynamic"].contains("-:^m\\.d$"));
  EXPECT_EQ(config["dynamic"].size(), 2u);
}

TEST(GptqFormat, RefusesSidesThatWordsDoNotDivide) {
  EXPECT_NE(refusal_of("gptq", {random_layer("a", group_spec(4, 8), 32, 40)})
                .find("must be multiples of 32, but are 32 and 40"),
            std::string::npos);
}

}  // namespace
}  // namespace qat
