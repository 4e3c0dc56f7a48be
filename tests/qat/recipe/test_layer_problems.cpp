#include <gtest/gtest.h>

#include "tests/qat/recipe/small_plan.h"

namespace qat {
namespace {

TEST(LayerProblems, AGroupThatDoesNotDivideNamesTheLayer) {
  EXPECT_EQ(
      problems_of("layers:\n  - {match: \"*\", weight: {dtype: int4, group_size: 64}}\n"),
      "r.yaml:3:5: group_size must divide the layer, but 64 does not divide in_features 96 of "
      "model.0.down_proj; the largest power of two that divides all layers of this rule is 32 "
      "(layers[0].weight.group_size)");
}

// As many sentences as rules have faults, not as many as layers.
TEST(LayerProblems, WhatIsWrongWithManyLayersIsSaidOnce) {
  std::vector<LayerInfo> layers;
  for (int i = 0; i < 30; ++i)
    for (const auto& [name, columns] :
         {std::pair{".q", 576}, {".k", 576}, {".gate", 576}, {".down", 1536}, {".odd", 80}})
      layers.push_back({std::to_string(i) + name, "Linear", columns, 192});
  const std::string named = "0.q, 0.k, 0.gate and 87 more";
  EXPECT_EQ(
      problems_of("layers:\n  - {match: \"*.[qkgd]*\", weight: {dtype: int4, group_size: 128}}\n"
                  "  - {match: \"*.odd\", weight: {dtype: int4, group_size: 16}, "
                  "input: {dtype: int8, group_size: 128}}\n",
                  layers),
      "r.yaml:3:5: group_size must divide the layer, but 128 does not divide in_features 576 of " +
          named +
          "; the largest power of two that divides all layers of this rule is 64 "
          "(layers[0].weight.group_size)\n"
          "r.yaml:4:5: group_size must divide the layer, but 128 does not divide in_features "
          "80 of 0.odd, 1.odd, 2.odd and 27 more; the largest power of two that divides all "
          "layers of this rule is 16 (layers[1].input.group_size)");
  EXPECT_EQ(
      problems_of("layers: {weight: {dtype: int4, block: [7, 100]}}\n",
                  {{"a", "Linear", 576, 192, false, {}, true, true, 1, true},
                   {"b", "Linear", 80, 192, false, {}, true, true, 1, true}}),
      "r.yaml:2:9: block rows must divide the layer, but 7 does not divide out_features 192 of "
      "a and b; the largest power of two that divides all layers of this rule is 64 "
      "(layers.weight.block)\n"
      "r.yaml:2:9: block columns must divide the layer, but 100 does not divide in_features 576 "
      "of a, nor in_features 80 of b; the largest power of two that divides all layers of this "
      "rule is 16 (layers.weight.block)");
  EXPECT_EQ(
      problems_of("layers:\n  - {match: \"*\", weight: {dtype: int4, group_size: 32}}\n",
                  {{"a", "Linear", 27, 8}, {"b", "Linear", 64, 8}}),
      "r.yaml:3:5: group_size must divide the layer, but 32 does not divide in_features 27 of "
      "a; give them a rule of their own, with another dtype or granularity, or float");
  EXPECT_EQ(problems_of("layers:\n  - {match: \"*\", weight: {mix: q4_k_m}}\n",
                        {{"a", "Linear", 80, 8}, {"b", "Linear", 80, 8}, {"c", "Linear", 40, 8}}),
            "r.yaml:3:5: the types of q4_k_m have blocks of 32 columns, which do not divide "
            "in_features 80 of a and b; leave them by a rule with weight: float\n"
            "r.yaml:3:5: the types of q4_k_m have blocks of 32 columns, which do not divide "
            "in_features 40 of c; leave them by a rule with weight: float");
  std::vector<LayerInfo> convolutions;
  for (const char* name : {"a", "b", "c", "d"}) convolutions.push_back({name, "Conv2d", 27, 8});
  EXPECT_EQ(problems_of("layers:\n  - {match: \"*\", input: {dtype: int8}}\n", convolutions),
            "r.yaml:3:5: input of a Conv2d must have granularity tensor, but that of a, b, c and d "
            "has token");
}

}  // namespace
}  // namespace qat
