#include <gtest/gtest.h>

#include "qat/error.h"
#include "qat/recipe/presets.h"
#include "qat/recipe/weight_types.h"

namespace qat {
namespace {

Plan plan_of(const std::string& rule) {
  std::vector<LayerInfo> layers;
  for (const char* leaf : {"q_proj", "k_proj", "v_proj", "o_proj"})
    layers.push_back({"l." + std::string(leaf), "Linear", 64, 32});
  return make_plan(parse_recipe("version: 1\nlayers: [{match: \"*\", " + rule + "}]\n", "r"),
                   layers);
}

const LayerPlan& layer(const Plan& plan, const std::string& leaf) {
  for (const LayerPlan& one : plan.layers)
    if (one.name == "l." + leaf) return one;
  throw std::runtime_error("no " + leaf);
}

std::string problem_of(const Plan& plan, const std::map<std::string, std::string>& types) {
  try {
    with_types(plan, types);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST(WeightTypes, OtherLevelsThanThreeAreFoundByTheirRange) {
  const Plan plan = plan_of("weight: {dtype: int2, group_size: 16, scale: absmean}");
  const Plan mixed = with_types(plan, {{"l.o_proj", "int4"}});
  EXPECT_EQ(layer(mixed, "o_proj").weight->range, Range::minmax);
  EXPECT_EQ(layer(mixed, "q_proj").weight->range, Range::absmean);
}

TEST(WeightTypes, OthersTakeThePlaceOfNvfp4) {
  const Plan plan = plan_of("weight: {dtype: nvfp4, scale: learned}");
  const Plan mixed = with_types(plan, {{"l.o_proj", "int8"}, {"l.q_proj", "mxfp8_e4m3"}});
  const QuantSpec& eight = *layer(mixed, "o_proj").weight;
  EXPECT_EQ(describe(eight), "int8 group 32 narrow, learned scale in bfloat16");
  EXPECT_EQ(describe(*layer(mixed, "q_proj").weight),
            "fp8_e4m3 group 32, learned scale in e8m0_floor");
  EXPECT_EQ(*layer(mixed, "k_proj").weight, *layer(plan, "k_proj").weight);
  EXPECT_EQ(layer(plan, "k_proj").shares.size(), 3U);
  EXPECT_TRUE(layer(mixed, "k_proj").shares.empty());  // q is another type: nothing is fused
}

TEST(WeightTypes, FloatLeavesALayerOut) {
  const Plan plan = plan_of("weight: {dtype: nvfp4}");
  const Plan mixed = with_types(plan, {{"l.o_proj", "float"}});
  EXPECT_EQ(mixed.layers.size(), 3U);
  ASSERT_EQ(mixed.left.size(), 1U);
  EXPECT_EQ(mixed.left.front().name, "l.o_proj");
  EXPECT_EQ(mixed.left.front().elements, 64 * 32);
  EXPECT_EQ(mixed.untouched, 1);
}

TEST(WeightTypes, InputsInBlocksFollowTheWeight) {
  const Plan plan = plan_of("weight: {dtype: nvfp4}, input: {dtype: nvfp4}");
  const Plan mixed =
      with_types(plan, {{"l.q_proj", "mxfp4"}, {"l.k_proj", "mxfp8_e4m3"}, {"l.o_proj", "int8"}});
  EXPECT_EQ(describe(*layer(mixed, "q_proj").input),
            "fp4_e2m1 group 32, dynamic scale in e8m0_even");
  EXPECT_EQ(describe(*layer(mixed, "k_proj").input),
            "fp8_e4m3 group 32, dynamic scale in e8m0_ceil");
  EXPECT_FALSE(layer(mixed, "o_proj").input);
  EXPECT_EQ(layer(mixed, "v_proj").input, layer(plan, "v_proj").input);
}

TEST(WeightTypes, IntegersKeepTheirGroupsAndInputs) {
  const Plan plan = plan_of("weight: {dtype: int4, group_size: 16}, input: {dtype: int8}");
  const Plan mixed = with_types(plan, {{"l.q_proj", "int8"}, {"l.o_proj", "nvfp4"}});
  EXPECT_EQ(layer(mixed, "q_proj").weight->group_size, 16);
  EXPECT_EQ(layer(mixed, "q_proj").weight->bits, 8);
  EXPECT_TRUE(layer(mixed, "q_proj").input);
  EXPECT_FALSE(layer(mixed, "o_proj").input);
}

TEST(WeightTypes, WhatDoesNotFitHasItsSentence) {
  std::vector<LayerInfo> layers{{"odd", "Linear", 24, 8}};
  const Plan plan = make_plan(
      parse_recipe("version: 1\nlayers: [{match: odd, weight: {dtype: int4}}]\n", "r"), layers);
  EXPECT_EQ(problem_of(plan, {{"odd", "nvfp4"}}),
            "To be nvfp4, odd must have in_features that 16 divides, but has 24.");
  EXPECT_EQ(problem_of(plan, {{"odd", "int9"}}),
            "The type of a weight must be int2, int3, int4, int5, int6, int7, int8, nvfp4, mxfp4, "
            "mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, q2_k, q3_k, q4_k, q5_k, q6_k, q4_0, "
            "q4_1, q5_0, q5_1, q8_0, q2_0, tq2_0, iq4_nl, iq4_xs or float, but is int9.");
  EXPECT_EQ(problem_of(plan, {{"even", "int8"}}), "types must name planned layers, but name even.");
}

TEST(WeightTypes, SizesCountScales) {
  const auto bits = [](const QuantSpec& spec) {
    return static_cast<double>(size_of_weight(spec, 64, 512)) / (64.0 * 512.0);
  };
  EXPECT_DOUBLE_EQ(bits(find_preset("nvfp4")->spec), 4.5 + 32.0 / (64.0 * 512.0));
  EXPECT_DOUBLE_EQ(bits(find_preset("mxfp4")->spec), 4.25);
  EXPECT_DOUBLE_EQ(bits(find_preset("mxfp6_e3m2")->spec), 6.25);
  EXPECT_DOUBLE_EQ(bits(find_preset("mxfp8_e4m3")->spec), 8.25);
  EXPECT_DOUBLE_EQ(bits(find_preset("q4_k")->spec), 4.5);  // llama.cpp's 144 bytes for 256
  EXPECT_DOUBLE_EQ(bits(find_preset("q6_k")->spec), 6.5625);
  EXPECT_DOUBLE_EQ(bits(find_preset("q2_k")->spec), 2.625);
  EXPECT_DOUBLE_EQ(bits(find_preset("q3_k")->spec), 3.4375);
  EXPECT_DOUBLE_EQ(bits(find_preset("iq4_xs")->spec), 4.25);
  QuantSpec int4;
  int4.bits = 4;
  int4.granularity = Granularity::group;
  int4.group_size = 32;
  EXPECT_DOUBLE_EQ(bits(int4), 4.5);
  int4.grid = Grid::asymmetric;
  EXPECT_DOUBLE_EQ(bits(int4), 4.625);
}

}  // namespace
}  // namespace qat
