#include <gtest/gtest.h>

#include "qat/recipe/mixes.h"
#include "qat/recipe/plan.h"
#include "tests/qat/message_of.h"
#include "tests/qat/recipe_of.h"

namespace qat {
namespace {

// A Llama of so many blocks, as transformers names its layers.
std::vector<LayerInfo> llama(int64_t blocks, int64_t hidden = 1024, int64_t values = 256,
                             bool tied = false) {
  std::vector<LayerInfo> layers{{"model.embed_tokens", "Embedding", hidden, 4096, true}};
  for (int64_t i = 0; i < blocks; ++i) {
    const std::string block = "model.layers." + std::to_string(i) + ".";
    for (const auto& [leaf, in, out] : {std::tuple("self_attn.q_proj", hidden, hidden),
                                        std::tuple("self_attn.k_proj", hidden, values),
                                        std::tuple("self_attn.v_proj", hidden, values),
                                        std::tuple("self_attn.o_proj", hidden, hidden),
                                        std::tuple("mlp.gate_proj", hidden, 2 * hidden),
                                        std::tuple("mlp.up_proj", hidden, 2 * hidden),
                                        std::tuple("mlp.down_proj", 2 * hidden, hidden)})
      layers.push_back({block + leaf, "Linear", in, out});
  }
  layers.push_back({"lm_head", "Linear", hidden, 4096, true});
  layers.front().counted = !tied;  // the head is what multiplies
  return layers;
}

std::string type_of(const std::string& mix, const std::vector<LayerInfo>& layers,
                    const std::string& name) {
  const auto types = mix_types(mix, layers);
  for (size_t i = 0; i < layers.size(); ++i)
    if (layers[i].name == name) return types[i].type ? types[i].type->name : "none";
  return "no such layer";
}

// The blocks in which a layer has a type.
std::vector<int64_t> blocks_with(const std::string& mix, const std::string& leaf,
                                 const std::string& type, int64_t blocks) {
  std::vector<int64_t> found;
  for (int64_t i = 0; i < blocks; ++i)
    if (type_of(mix, llama(blocks), "model.layers." + std::to_string(i) + "." + leaf) == type)
      found.push_back(i);
  return found;
}

TEST(Mixes, Q4_K_MSpendsMoreOnHalfOfTheValuesAndSecondMatrices) {
  // Of 32 blocks the first and last four, and every third between: 6, 9, ... 27.
  const std::vector<int64_t> more{0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31};
  EXPECT_EQ(blocks_with("q4_k_m", "self_attn.v_proj", "q6_k", 32), more);
  EXPECT_EQ(blocks_with("q4_k_m", "mlp.down_proj", "q6_k", 32), more);
  for (const char* other :
       {"self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"})
    EXPECT_EQ(blocks_with("q4_k_m", other, "q4_k", 32).size(), 32u) << other;
  EXPECT_EQ(blocks_with("q5_k_m", "mlp.down_proj", "q6_k", 32), more);
}

TEST(Mixes, OthersByTheirOwnRules) {
  EXPECT_EQ(blocks_with("q4_k_s", "self_attn.v_proj", "q5_k", 16),
            (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(blocks_with("q4_k_s", "mlp.down_proj", "q5_k", 16), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(blocks_with("q3_k_m", "self_attn.v_proj", "q5_k", 16), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(blocks_with("q3_k_m", "mlp.down_proj", "q5_k", 16), (std::vector<int64_t>{0}));
  EXPECT_EQ(blocks_with("q3_k_m", "self_attn.o_proj", "q4_k", 16).size(), 16u);
  EXPECT_EQ(blocks_with("q2_k", "self_attn.v_proj", "q4_k", 16).size(), 16u);  // four queries a key
  EXPECT_EQ(blocks_with("q2_k", "mlp.down_proj", "q3_k", 16).size(), 16u);
  EXPECT_EQ(blocks_with("q2_k", "mlp.up_proj", "q2_k", 16).size(), 16u);
  EXPECT_EQ(blocks_with("q6_k", "mlp.up_proj", "q6_k", 16).size(), 16u);
  EXPECT_EQ(type_of("q2_k", llama(2, 1024, 1024), "model.layers.0.self_attn.v_proj"), "q3_k");
}

TEST(Mixes, TheHeadHasSixBitsAndTheEmbeddingWhereItIsTheHead) {
  EXPECT_EQ(type_of("q4_k_m", llama(2), "lm_head"), "q6_k");
  EXPECT_EQ(type_of("q4_k_m", llama(2), "model.embed_tokens"), "q4_k");
  EXPECT_EQ(type_of("q4_k_m", llama(2, 1024, 256, true), "model.embed_tokens"), "q6_k");
}

TEST(Mixes, ModelsOfEightExpertsKeepKeysAndValues) {
  std::vector<LayerInfo> layers = llama(4);
  layers.push_back({"model.layers.0.mlp.experts.down_proj", "Experts", 512, 1024});
  layers.back().matrices = 8;
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.0.self_attn.v_proj"), "q8_0");
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.3.self_attn.k_proj"), "q8_0");
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.3.self_attn.o_proj"), "q5_k");
  EXPECT_EQ(type_of("q5_k_m", layers, "model.layers.3.self_attn.o_proj"), "q5_k");
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.0.mlp.experts.down_proj"), "q4_k");
}

TEST(Mixes, WhatSuperBlocksDoNotDivideHasBlocksOf32) {
  const std::vector<LayerInfo> layers = llama(30, 576, 192, true);
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.4.self_attn.q_proj"), "q5_0");
  EXPECT_EQ(type_of("q4_k_m", layers, "model.layers.0.self_attn.v_proj"), "q8_0");
  EXPECT_EQ(type_of("q5_k_m", layers, "model.layers.4.self_attn.q_proj"), "q5_1");
  EXPECT_EQ(type_of("q2_k", layers, "model.layers.4.self_attn.q_proj"), "q4_0");
  EXPECT_EQ(type_of("q4_k_m", layers, "model.embed_tokens"), "q8_0");
  EXPECT_EQ(mix_types("q4_k_m", layers)[1].note,
            "q5_0 of q4_k_m, in place of q4_k, whose 256 do not divide 576");
}

TEST(Mixes, ARecipeNamesOneAndChangesItLayerByLayer) {
  const Plan plan =
      make_plan(recipe_of("{match: \"model.layers.*\", weight: {mix: q4_k_m, scale: learned}}, "
                          "{match: \"*.o_proj\", weight: {dtype: q5_k, scale: learned}}"),
                llama(2));
  ASSERT_EQ(plan.layers.size(), 14u);
  EXPECT_EQ(preset_of(*plan.layers[3].weight), find_preset("q5_k"));
  EXPECT_EQ(plan.layers[3].note, "");
  EXPECT_EQ(preset_of(*plan.layers[0].weight), find_preset("q4_k"));
  EXPECT_EQ(plan.layers[13].note, "q6_k of q4_k_m");
  EXPECT_EQ(plan.layers[13].weight->range, Range::learned);
  EXPECT_NE(to_text(plan).find("scale in int8*float16 (q6_k of q4_k_m)\n"), std::string::npos);
}

TEST(Mixes, SayWhatTheyCannotBe) {
  const auto problem = [](const std::string& weight) {
    return message_of([&] {
      make_plan(recipe_of("{match: a, weight: {" + weight + "}}"), {{"a", "Linear", 40, 64}});
    });
  };
  EXPECT_EQ(problem("mix: q4_k_m"),
            "r.yaml:2:10: the types of q4_k_m have blocks of 32 columns, which do not divide "
            "in_features 40 of a; leave them by a rule with weight: float");
  EXPECT_NE(
      problem("mix: q4_k_m, group_size: 32")
          .find("layers[0].weight.group_size must not be given beside mix, which has types of "
                "its own, but is 32"),
      std::string::npos);
  EXPECT_NE(problem("mix: q9_k").find("layers[0].weight.mix must be q2_k, q3_k_s"),
            std::string::npos);
  EXPECT_NE(problem("dtype: q4_k_m")
                .find("layers[0].weight.dtype must be one type; a mix of types is given by mix: "
                      "q4_k_m, but is q4_k_m"),
            std::string::npos);
}

}  // namespace
}  // namespace qat
