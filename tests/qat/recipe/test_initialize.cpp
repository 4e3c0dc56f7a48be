#include <gtest/gtest.h>

#include "qat/recipe/recipe.h"
#include "tests/qat/message_of.h"

namespace qat {
namespace {

using Transforms = std::vector<Transform>;

TEST(Initialize, ReadsMethods) {
  const struct {
    std::string method;
    Transforms transforms;
    Rounding rounding;
    bool keeps_scales;
    bool needs_data;
  } cases[] = {
      {"rtn", {}, Rounding::rtn, false, false},
      {"mse", {}, Rounding::mse, false, false},
      {"gptq", {}, Rounding::gptq, true, true},
      {"awq", {Transform::awq}, Rounding::clip, true, true},
      {"awq+gptq", {Transform::awq}, Rounding::gptq, true, true},
      {"smoothquant", {Transform::smoothquant}, Rounding::mse, false, true},
      {"hadamard+rtn", {Transform::hadamard}, Rounding::rtn, false, false},
      {"hadamard+smoothquant+gptq",
       {Transform::hadamard, Transform::smoothquant},
       Rounding::gptq,
       true,
       true},
  };
  for (const auto& expected : cases) {
    Initialize found;
    EXPECT_EQ(parse_method(expected.method, &found), "") << expected.method;
    EXPECT_EQ(found.transforms, expected.transforms);
    EXPECT_EQ(found.rounding, expected.rounding);
    EXPECT_EQ(found.keeps_scales(), expected.keeps_scales) << expected.method;
    EXPECT_EQ(found.needs_data(), expected.needs_data) << expected.method;
  }
}

TEST(Initialize, RefusesOtherMethods) {
  for (const auto* method :
       {"", "best", "gptq+awq", "awq+", "+gptq", "awq+awq", "rtn+mse", "clip"}) {
    Initialize found;
    EXPECT_NE(parse_method(method, &found), "") << method;
  }
}

const std::string kHead = "version: 1\nlayers:\n  - match: a\n    weight: {dtype: int4}\n";

TEST(Initialize, ScalesThatStayAreSearchedUnlessTheyAreLearned) {
  const auto range = [](const std::string& weight, const std::string& method) {
    return parse_recipe("version: 1\nlayers:\n  - match: a\n    weight: " + weight +
                            "\ninitialize: {method: " + method + "}\n",
                        "r")
        .layers[0]
        .weight.spec->range;
  };
  EXPECT_EQ(range("{dtype: int4}", "rtn"), Range::minmax);
  EXPECT_EQ(range("{dtype: int4}", "gptq"), Range::fixed);
  EXPECT_EQ(range("{dtype: int4, scale: learned}", "gptq"), Range::learned);
  EXPECT_THROW(range("{dtype: int4, scale: minmax}", "gptq"), RecipeError);
}

TEST(Initialize, BlockTrainingKeepsScales) {
  const Recipe recipe = parse_recipe(
      kHead + "initialize: {method: mse, block_training: {steps: 5, rounding: signed}}\n", "r");
  EXPECT_TRUE(recipe.initialize.keeps_scales());
  EXPECT_TRUE(recipe.initialize.needs_data());
  EXPECT_EQ(recipe.initialize.block_training.rounding, BlockRounding::half_step);
}

TEST(Initialize, ARotationMayBeOfSomeFeaturesEach) {
  const auto size = [](const std::string& settings) {
    return parse_recipe(kHead + "initialize: {" + settings + "}\n", "r").initialize.rotation_size;
  };
  EXPECT_EQ(size("method: hadamard+gptq, rotation_size: 32"), 32);
  EXPECT_EQ(size("method: hadamard+gptq"), 0);
  EXPECT_THROW(size("method: gptq, rotation_size: 32"), RecipeError);
}

TEST(Initialize, WhatTheMethodDoesNotReadMustBeLeftOut) {
  const auto refused = [](const std::string& settings) {
    return message_of([&] { parse_recipe(kHead + "initialize: {" + settings + "}\n", "r"); });
  };
  const std::string gptq = "must be left out unless method rounds by gptq, but is ";
  EXPECT_EQ(refused("method: mse, damping: 0.1"), "r:5:36: initialize.damping " + gptq + "0.1");
  EXPECT_EQ(refused("method: awq, order: column"), "r:5:34: initialize.order " + gptq + "column");
  EXPECT_EQ(refused("method: gptq, smoothing: 0.3"),
            "r:5:39: initialize.smoothing must be left out unless method has smoothquant+, but is "
            "0.3");
  EXPECT_EQ(refused("method: rtn, sequential: false"),
            "r:5:39: initialize.sequential must be left out unless method has gptq, awq or "
            "smoothquant, but is false");
  EXPECT_EQ(refused("block_training: {rounding: signed}"),
            "r:5:41: initialize.block_training.rounding must be left out unless steps is above 0, "
            "but is signed");
  // At their defaults they claim nothing, and mode auto tries GPTQ whatever the method is.
  parse_recipe(kHead + "initialize: {method: rtn, damping: 0.01, sequential: true}\n", "r");
  parse_recipe(kHead + "mode: auto\nevaluate: {accept: {kl: 1}}\ninitialize: {damping: 0.1}\n",
               "r");
}

TEST(Initialize, NamesAreThoseOfRecipes) {
  const Initialize initialize =
      parse_recipe(kHead + "initialize: {method: awq+gptq, order: column, scale_search: minmax}\n",
                   "r")
          .initialize;
  EXPECT_STREQ(name_of(initialize.transforms[0]), "awq");
  EXPECT_STREQ(name_of(initialize.rounding), "gptq");
  EXPECT_EQ(initialize.order, ColumnOrder::column);
  EXPECT_EQ(initialize.scale_search, ScaleSearch::minmax);
  for (const auto search : {ScaleSearch::minmax, ScaleSearch::mse})
    EXPECT_EQ(parse_scale_search(name_of(search)), search);
  for (const auto rounding : {BlockRounding::free, BlockRounding::half_step})
    EXPECT_EQ(parse_block_rounding(name_of(rounding)), rounding);
  EXPECT_EQ(message_of([] { parse_scale_search("best"); }),
            "scale_search must be minmax or mse, but is best.");
}

TEST(Initialize, BadValuesHaveTheirSentence) {
  try {
    parse_recipe(kHead + "initialize: {method: gptqq, order: best, damping: -1, correction: 2}\n",
                 "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(
        std::string(error.what()),
        "r:5:22: initialize.method must be rtn, mse, gptq or awq, or one of them after hadamard+, "
        "smoothquant+ or awq+, but is gptqq\n"
        "r:5:36: initialize.order must be plain, group or column, but is best\n"
        "r:5:51: initialize.damping must be a number from 0 to 10, but is -1\n"
        "r:5:67: initialize.correction must be a number from 0 to 1, but is 2");
  }
}

}  // namespace
}  // namespace qat
