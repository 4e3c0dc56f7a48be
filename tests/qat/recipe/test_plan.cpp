#include <gtest/gtest.h>

#include "tests/qat/recipe/small_plan.h"

namespace qat {
namespace {

TEST(Plan, WidthsOfNamedLayersChange) {
  Plan plan;
  for (const char* name : {"a", "b"}) {
    LayerPlan layer;
    layer.name = name;
    layer.weight = QuantSpec{};
    plan.layers.push_back(layer);
  }
  const Plan changed = with_widths(plan, {{"b", 4}, {"c", 2}});
  EXPECT_EQ(changed.layers[0].weight->bits, 8);
  EXPECT_EQ(changed.layers[1].weight->bits, 4);
}

TEST(Plan, LaterRulesWinTensorByTensor) {
  const Plan plan = make_plan(recipe_of("layers:\n"
                                        "  - match: \"model.*\"\n"
                                        "    weight: {dtype: int4, group_size: 32}\n"
                                        "  - match: \"*.down_proj\"\n"
                                        "    weight: {dtype: int8}\n"
                                        "  - match: \"re:q_proj$\"\n"
                                        "    input: {dtype: int8}\n"),
                              kLayers);
  ASSERT_EQ(plan.layers.size(), 2u);
  EXPECT_EQ(plan.layers[0].weight->bits, 4);
  EXPECT_TRUE(plan.layers[0].input);
  EXPECT_EQ(describe(*plan.layers[1].weight), "int8 channel narrow, minmax scale in bfloat16");
  EXPECT_EQ(plan.untouched, 1);
}

LayerInfo parameter(const std::string& name, const std::string& why) {
  LayerInfo info{name, "Holder", 64, 96};
  info.plannable = false;
  info.why = why;
  return info;
}

std::string plan_text(const std::string& rest, const std::vector<LayerInfo>& layers) {
  try {
    return to_text(make_plan(recipe_of(rest), layers));
  } catch (const RecipeError& error) {
    return error.what();
  }
}

TEST(Plan, WeightsThatNoLayerCoversAreAnErrorUnlessTheyAreLeft) {
  std::vector<LayerInfo> layers = kLayers;
  layers.push_back(parameter("model.0.experts", "a parameter of Holder"));
  layers.push_back(parameter("model.1.experts", "a parameter of Holder"));
  const std::string rule = "layers:\n  - {match: \"model.*\", weight: {dtype: int8}";
  const std::string left =
      "left in floating point: model.0.experts and 1 more, 42.4 % of all parameters: ";
  EXPECT_EQ(plan_text(rule + "}\n", layers),
            "r.yaml:3:5: match must reach what torchqat can quantize, but model.* also reaches "
            "model.0.experts and 1 more, 54.5 % of its weights (a parameter of Holder); leave them "
            "by a rule with weight: float, or by allow_float: true");
  EXPECT_NE(
      plan_text(rule + ", allow_float: true}\n", layers).find(left + "a parameter of Holder\n"),
      std::string::npos);
  EXPECT_NE(plan_text(rule + "}\n  - {match: \"*.experts\", weight: float}\n", layers)
                .find(left + "by a rule\n"),
            std::string::npos);
  for (LayerInfo& layer : layers)
    if (!layer.plannable) layer.multiplied = false;
  EXPECT_NE(plan_text(rule + "}\n", layers)
                .find("35.3 % of all parameters, 61.5 % of the weights that are multiplied"),
            std::string::npos);
}

TEST(Plan, ItSaysWhichWeightsStayInFloatingPointAndWhy) {
  std::vector<LayerInfo> layers = kLayers;
  layers[2].why = "output head";
  const Recipe recipe = recipe_of("layers:\n  - {match: \"*q_proj\", weight: {dtype: int8}}\n");
  const Plan plan = make_plan(recipe, layers, /*parameters=*/20000);
  ASSERT_EQ(plan.left.size(), 2u);
  EXPECT_EQ(plan.left[0].name, "model.0.down_proj");
  EXPECT_EQ(plan.left[0].why, "no rule reaches it");
  EXPECT_EQ(plan.left[1].why, "output head");
  EXPECT_EQ(plan.parameters, 20000);
  EXPECT_EQ(plan.quantized(), 64 * 64);
  EXPECT_EQ(plan.multiplied(), 64 * 64 + 96 * 64 + 64 * 100);
  EXPECT_NE(to_text(plan).find("20.4 % of all parameters, 24.6 % of the weights"),
            std::string::npos);
}

TEST(Plan, BlocksAreNamedByAWord) {
  std::vector<LayerInfo> layers = kLayers;
  layers[0].in_block = layers[2].in_block = true;
  const Plan plan =
      make_plan(recipe_of("layers:\n  - {match: blocks, weight: {dtype: int8}}\n"), layers);
  ASSERT_EQ(plan.layers.size(), 1u);  // the head only by its name
  EXPECT_EQ(plan.layers[0].name, "model.0.q_proj");
}

TEST(Plan, AnyNameOfALayerReachesIt) {
  std::vector<LayerInfo> layers = kLayers;
  layers[0].aliases = {"twin.q_proj"};
  const Plan plan =
      make_plan(recipe_of("layers:\n  - {match: \"twin.*\", weight: {dtype: int8}}\n"), layers);
  ASSERT_EQ(plan.layers.size(), 1u);
  EXPECT_EQ(plan.layers[0].name, "model.0.q_proj");
}

TEST(Plan, ExpertsHaveScalesOfTheirOwnAndInputsAsTheyAre) {
  LayerInfo experts{"model.0.experts.down_proj", "Experts", 64, 32};
  experts.matrices = 4;
  const auto told = [&](const std::string& tensors) {
    return plan_text("layers:\n  - {match: \"model.*\", " + tensors + "}\n", {experts});
  };
  EXPECT_NE(
      told("weight: {dtype: int8, granularity: tensor}")
          .find("weight of Experts must have granularity channel, group or block, but that of "
                "model.0.experts.down_proj has tensor"),
      std::string::npos);
  EXPECT_NE(told("weight: {dtype: int8}, input: {dtype: int8}")
                .find("input must not be given for Experts, but model.* matches "
                      "model.0.experts.down_proj; leave them by a rule with input: float"),
            std::string::npos);
  EXPECT_NE(told("weight: {dtype: int8}").find("Experts 4 x [32, 64]"), std::string::npos);
}

TEST(Plan, AnOutputHeadIsReachedByItsFullNameOnly) {
  EXPECT_EQ(make_plan(recipe_of("layers:\n  - {match: \"type:Linear\", weight: {dtype: int8}}\n"),
                      kLayers)
                .layers.size(),
            2u);
  EXPECT_EQ(make_plan(recipe_of("layers:\n  - {match: \"*\", weight: {dtype: int8}}\n"), kLayers)
                .layers.size(),
            2u);
  EXPECT_EQ(make_plan(recipe_of("layers:\n  - {match: lm_head, weight: {dtype: int8}}\n"), kLayers)
                .layers.size(),
            1u);
}

TEST(Plan, FloatTakesALayerOut) {
  const Plan plan = make_plan(recipe_of("layers:\n  - {match: \"*\", weight: {dtype: int8}}\n"
                                        "  - {match: \"*.q_proj\", weight: float}\n"),
                              kLayers);
  ASSERT_EQ(plan.layers.size(), 1u);
  EXPECT_EQ(plan.layers[0].name, "model.0.down_proj");
}

TEST(Plan, ARuleThatMatchesNothingIsAnError) {
  EXPECT_EQ(problems_of("layers:\n  - {match: model.0.q_porj, weight: {dtype: int8}}\n"),
            "r.yaml:3:5: match must name a layer, but model.0.q_porj matches none of 3 layers; "
            "did you mean model.0.q_proj?");
  EXPECT_EQ(problems_of("layers:\n  - {match: \"re:(\", weight: {dtype: int8}}\n"),
            "r.yaml:3:5: match must be a regular expression after re:, but is re:(");
  EXPECT_EQ(
      problems_of("layers:\n  - {match: blocks, weight: {dtype: int8}}\n"),
      "r.yaml:3:5: match must name a layer, but blocks matches none of 3 layers: none is in a "
      "list of blocks (the first is model.0.q_proj)");
}

TEST(Plan, TheScheduleMustEndAtTheExportedWidth) {
  const std::string rule = "layers:\n  - {match: \"*\", weight: {dtype: int4}}\n";
  EXPECT_EQ(problems_of(rule + "schedule:\n  - {until: 100%, weight: int6}\n"),
            "r.yaml:5:5: schedule[0].weight must end at the width that is exported, int4 for "
            "model.0.q_proj, but is int6");
  EXPECT_EQ(
      problems_of(rule + "schedule:\n  - {until: 90%, weight: int4}\n"),
      "r.yaml:5:5: until of the last stage must be 100% or train.steps, 300, but is step 270");
  EXPECT_EQ(problems_of(rule + "schedule:\n  - {until: 200, weight: int8}\n  - {until: 50%, "
                               "weight: int6}\n  - {until: 100%}\n"),
            "r.yaml:6:5: until must lie after the stage before it, which ends at step 200, but is "
            "step 150");
}

TEST(Plan, AStageIsAsWideAsItSaysForSomeLayer) {
  const std::string rule = "layers:\n  - {match: \"*\", weight: {dtype: int4}}\n";
  EXPECT_EQ(problems_of(rule + "schedule:\n  - {until: 50%, weight: int2}\n  - {until: 100%}\n"),
            "r.yaml:5:5: schedule[0].weight must be no narrower than what is exported, int4 for "
            "model.0.q_proj, but is int2");
  EXPECT_EQ(problems_of(rule + "schedule:\n  - {until: 50%, input: int8}\n  - {until: 100%}\n"),
            "r.yaml:5:5: schedule[0].input must be left out, since no layer's input is quantized, "
            "but is int8");
  make_plan(recipe_of(rule + "  - {match: \"*.q_proj\", weight: {dtype: int8}}\n"
                             "schedule: [{until: 50%, weight: int6}, {until: 100%}]\n"),
            kLayers);
}

TEST(Plan, WhatIsExportedGetsAStep) {
  EXPECT_EQ(problems_of("layers:\n  - {match: \"*\", weight: {dtype: int4}}\n"
                        "schedule:\n  - {until: 300, weight: int8}\n  - {until: 100%}\n"),
            "r.yaml:5:5: until of a stage before the last must be below train.steps, 300, so that "
            "what is exported is trained, but is step 300");
}

TEST(Plan, NaivePlanRoundsEverythingToOneWidth) {
  const Plan plan = make_plan(
      recipe_of(
          "layers:\n  - {match: \"*\", weight: {dtype: int4, group_size: 32, scale: learned}}\n"),
      kLayers);
  const Plan naive = naive_plan(plan, 8);
  EXPECT_EQ(describe(*naive.layers[0].weight), "int8 group 32 narrow, minmax scale in bfloat16");
  EXPECT_EQ(naive.stages.size(), 1u);
}

const std::vector<LayerInfo> kNetwork{{"stem", "Conv2d", 27, 8, false},
                                      {"words", "Embedding", 64, 100, true},
                                      {"out", "Linear", 64, 10, false}};

Plan plan_of_network(const std::string& rule) {
  return make_plan(recipe_of("layers:\n" + rule), kNetwork);
}

TEST(Plan, AnEmbeddingIsReachedByItsTypeOrItsNameAlone) {
  const auto names = [](const Plan& plan) {
    std::vector<std::string> found;
    for (const auto& layer : plan.layers) found.push_back(layer.name);
    return found;
  };
  const std::string weight = ", weight: {dtype: int8}}\n";
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(plan_of_network("  - {match: \"*\"" + weight)), (Names{"stem", "out"}));
  EXPECT_EQ(names(plan_of_network("  - {match: \"re:.\"" + weight)), (Names{"stem", "out"}));
  EXPECT_EQ(names(plan_of_network("  - {match: \"type:Embedding\"" + weight)), (Names{"words"}));
  EXPECT_EQ(names(plan_of_network("  - {match: words" + weight)), (Names{"words"}));
  EXPECT_EQ(names(plan_of_network("  - {match: \"type:Conv2d\"" + weight)), (Names{"stem"}));
}

TEST(Plan, SomeTypesOfLayersCannotHaveSomeInputs) {
  const auto refusal = [](const std::string& rule) {
    try {
      plan_of_network(rule);
    } catch (const RecipeError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal("  - {match: words, input: {dtype: int8}}\n"),
            "r.yaml:3:5: input must not be given for an Embedding, but words matches words");
  EXPECT_EQ(refusal("  - {match: stem, input: {dtype: int8}}\n"),
            "r.yaml:3:5: input of a Conv2d must have granularity tensor, but that of stem has "
            "token");
  EXPECT_EQ(refusal("  - {match: stem, input: {dtype: int8, granularity: tensor}}\n"), "");
}

TEST(Plan, InFloat8TokensOfLinearLayersAreRoundedToo) {
  const Plan plan = float8_plan(plan_of_network(
      "  - {match: \"*\", weight: {dtype: int4, granularity: channel, scale_dtype: float16}}\n"));
  ASSERT_EQ(plan.layers.size(), 2u);
  EXPECT_EQ(describe(*plan.layers[0].weight), "fp8_e4m3 channel, minmax scale in float16");
  EXPECT_FALSE(plan.layers[0].input);
  EXPECT_EQ(describe(*plan.layers[1].weight), "fp8_e4m3 channel, minmax scale in float16");
  ASSERT_TRUE(plan.layers[1].input);
  EXPECT_EQ(plan.layers[1].input->granularity, Granularity::token);
  EXPECT_TRUE(plan.layers[1].input->dynamic && plan.layers[1].input->is_float8());
}

TEST(Plan, PrintsTheTypeOfLayersThatAreNotLinear) {
  const std::string text =
      to_text(plan_of_network("  - {match: \"*\", weight: {dtype: int8, granularity: channel}}\n"));
  EXPECT_NE(text.find("stem  Conv2d [8, 27]  weight int8"), std::string::npos) << text;
  EXPECT_NE(text.find("out   [10, 64]  weight int8"), std::string::npos) << text;
}

TEST(Plan, PrintsOneLineALayer) {
  const Plan plan = make_plan(
      recipe_of("layers:\n  - {match: \"*.q_proj\", weight: {dtype: int4, group_size: 32}}\n"),
      kLayers);
  EXPECT_EQ(
      to_text(plan),
      "model.0.q_proj  [64, 64]  weight int4 group 32 narrow, minmax scale in bfloat16\n"
      "1 layers quantized, 2 layers left alone\n"
      "24.6 % of all parameters, 24.6 % of the weights that are multiplied are quantized\n"
      "left in floating point: model.0.down_proj and 1 more, 75.3 % of all parameters: no rule "
      "reaches it\n");
}

}  // namespace
}  // namespace qat
