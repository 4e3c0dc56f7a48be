#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "qat/recipe/plan.h"
#include "qat/recipe/run_recipe.h"

namespace qat {
namespace {

const std::string kText =
    "version: 1\n"
    "layers:  # two rules\n"
    "  - match: \"*\"\n"
    "    weight: {dtype: int4, group_size: 32}\n"
    "  - {match: \"*.down\", weight: {dtype: int8}}\n"
    "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n"
    "train: {steps: 80, epochs: }\n";

RunRecipe with(const std::vector<std::string>& settings, const std::string& text = kText) {
  std::vector<std::string> all{"train.epochs="};
  if (text != kText) all.clear();
  all.insert(all.end(), settings.begin(), settings.end());
  return parse_run_recipe(text, "r.yaml", all);
}

std::string problems_of(const std::vector<std::string>& settings, const std::string& text = kText) {
  try {
    with(settings, text);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

TEST(Settings, HoldInPlaceOfWhatTheRecipeSays) {
  const RunRecipe recipe =
      with({"train.steps=300", "layers.0.weight.group_size=64", "layers[1].weight.dtype=int6",
            "train.lora.rank=4", "train.parameters=lora", "evaluate.accept.kl=0.5",
            "export=[gguf, awq]", "schedule=", "data.train=./text"});
  EXPECT_EQ(recipe.train.steps, 300);
  EXPECT_EQ(recipe.layers[0].weight.spec->group_size, 64);
  EXPECT_EQ(recipe.layers[1].weight.spec->bits, 6);
  EXPECT_EQ(recipe.train.lora.rank, 4);
  EXPECT_EQ(recipe.evaluate.accept_kl, 0.5);
  EXPECT_EQ(recipe.exports, (std::vector<std::string>{"gguf", "awq"}));
  EXPECT_TRUE(recipe.schedule.empty());
}

TEST(Settings, MayBeWholeRulesAndAddOne) {
  const RunRecipe recipe = with({"layers.0={match: a, weight: float}",
                                 "layers.2={match: blocks, weight: {dtype: int3}}", "schedule="});
  EXPECT_FALSE(recipe.layers[0].weight.spec);
  EXPECT_EQ(recipe.layers[2].match, "blocks");
  const RunRecipe only = with({"layers={weight: {dtype: int2}}", "schedule="});
  EXPECT_EQ(only.layers.size(), 1u);
}

// So that the folder of a run tells all that there is to tell.
TEST(Settings, AreInTheTextOfTheRecipe) {
  const RunRecipe recipe = with({"train.steps=300", "layers.1.match='re:down$'", "schedule="});
  EXPECT_EQ(recipe.text.find("# r.yaml with --set train.epochs= --set train.steps=300"), 0u);
  const RunRecipe again = parse_run_recipe(recipe.text, "again.yaml");
  EXPECT_EQ(again.train.steps, 300);
  EXPECT_EQ(again.layers[0].match, "*");
  EXPECT_EQ(again.layers[1].match, "re:down$");
  EXPECT_TRUE(again.schedule.empty());
  EXPECT_EQ(parse_run_recipe(recipe.text, "r").text, recipe.text);  // untouched without settings
}

const std::string kOneRule =
    "version: 1\nlayers: [{match: up, weight: {dtype: int4, group_size: 8}}]\n";

struct Refused {
  std::vector<std::string> settings;
  std::string sentence;
};

class RefusedSettings : public ::testing::TestWithParam<Refused> {};

TEST_P(RefusedSettings, HaveTheSentenceOfAFile) {
  EXPECT_EQ(problems_of(GetParam().settings), GetParam().sentence);
}

INSTANTIATE_TEST_SUITE_P(
    All, RefusedSettings,
    ::testing::Values(
        Refused{{"train.steps=many"},
                "--set train.steps=many: train.steps must be a whole number from 0 to 1000000000, "
                "but is many"},
        Refused{{"train.stesp=3"},
                "--set train.stesp=3: train.stesp is not a known key; did you mean train.steps?"},
        Refused{{"trian.steps=3"},
                "--set trian.steps=3: trian is not a known key; did you mean train?"},
        Refused{{"train.lora.rnak=3"},
                "--set train.lora.rnak=3: train.lora must not be given unless parameters is lora, "
                "but is {rnak: 3}\n"
                "--set train.lora.rnak=3: train.lora.rnak is not a known key; did you mean "
                "train.lora.rank?"},
        Refused{{"export=gguf"}, "--set export=gguf: export must be a list, but is gguf"},
        Refused{{"export=[]"}, "--set export=[]: export must list at least one format, but is []"},
        Refused{
            {"train.seed=1", "layers.0.weight.dtype=int9"},
            "--set layers.0.weight.dtype=int9: layers[0].weight.dtype must be int2, int3, int4, "
            "int5, int6, int7, int8, fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2, nvfp4, "
            "mxfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, q2_k, q3_k, q4_k, q5_k, q6_k, "
            "q4_0, q4_1, q5_0, q5_1, q8_0, q2_0, tq2_0, iq4_nl or iq4_xs, but is "
            "int9"},
        Refused{{"train.steps"}, "--set train.steps: must be KEY=VALUE, such as train.steps=300"},
        Refused{{"train steps=3"},
                "--set train steps=3: must be KEY=VALUE, such as train.steps=300, but is train "
                "steps"},
        Refused{{"export=[gguf"},
                "--set export=[gguf: the value must be YAML, but end of sequence flow not found"},
        Refused{{"train.steps.of=3"},
                "--set train.steps.of=3: train.steps must be a map of keys, but is 80"},
        Refused{{"layers.5.match=a"},
                "--set layers.5.match=a: layers has the entries 0 to 1, but is asked for 5"},
        Refused{
            {"layers.first.match=a"},
            "--set layers.first.match=a: layers has the entries 0 to 1, but is asked for first"},
        Refused{{"train.seed=1", "train.batch_size=4", "train.seed=2"},
                "--set train.seed=2: a key must be set once, but --set train.seed=1 sets it, too"},
        Refused{{"layers[1].match=a", "layers.1.match=a"},
                "--set layers.1.match=a: a key must be set once, but --set layers[1].match=a sets "
                "it, too"},
        Refused{{"layers.1="}, "--set layers.1=: layers[1] must be given a value, but is not"},
        Refused{
            {"train.seed="},
            "--set train.seed=: train.seed must be in the recipe to be taken out, but is not"}));

TEST(Settings, DoNotReachThroughAnchors) {
  const std::string text =
      "version: 1\nlayers:\n  - {match: a, weight: &w {dtype: int4}}\n  - {match: b, weight: *w}\n";
  EXPECT_EQ(problems_of({"layers.0.weight.dtype=int8"}, text),
            "--set layers.0.weight.dtype=int8: layers[0].weight must not be shared by an anchor "
            "(&) to be set, but is");
  EXPECT_EQ(problems_of({"layers.0.weight=float"}, text),
            "--set layers.0.weight=float: layers[0].weight must not be shared by an anchor (&) to "
            "be set, but is");
  EXPECT_EQ(with({"layers.0.match=c"}, text).layers[0].match, "c");
}

TEST(Settings, AreNamedWhereAPlanRefusesThem) {
  const RunRecipe recipe = with({"layers=[{match: nothing, weight: float}]", "schedule="});
  try {
    make_plan(recipe.core(), {{"up", "Linear", 8, 8}});
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(std::string(error.what())
                  .find("--set layers=[{match: nothing, weight: float}]: match "
                        "must name a layer, but nothing matches none"),
              0u)
        << error.what();
  }
}

// A rule that a setting changed stands in the file, but not what the plan refuses of it.
TEST(Settings, AreNamedBesideTheRuleThatTheyChange) {
  const auto refused = [](const std::vector<std::string>& settings) -> std::string {
    try {
      make_plan(with(settings, kOneRule).core(), {{"up", "Linear", 8, 8}});
    } catch (const RecipeError& error) {
      return error.what();
    }
    return "";
  };
  const std::string sentence = ": group_size must divide the layer, but 3 does not divide";
  EXPECT_EQ(refused({"layers.0.weight.group_size=3"})
                .find("r.yaml:2:10 with --set layers.0.weight.group_size=3" + sentence),
            0u);
  EXPECT_EQ(refused({"train.seed=1", "layers[0].weight.group_size=3"})
                .find("r.yaml:2:10 with --set layers[0].weight.group_size=3" + sentence),
            0u);
  EXPECT_EQ(refused({"layers.0={match: up, weight: {dtype: int4}}", "layers.0.weight.group_size=3"})
                .find("--set layers.0={match: up, weight: {dtype: int4}} with --set "
                      "layers.0.weight.group_size=3" +
                      sentence),
            0u);
  EXPECT_EQ(refused({"train.seed=1", "layers.1={match: up, weight: {dtype: int4, group_size: 3}}"})
                .find("--set layers.1={match: up, weight: {dtype: int4, group_size: 3}}" + sentence),
            0u);
}

TEST(Settings, PlacesOfTheFileStayAsTheyAre) {
  EXPECT_EQ(problems_of({"train.seed=1"}, "version: 1\nlayers: {weight: float}\ntrian: {}\n"),
            "r.yaml:3:1: trian is not a known key; did you mean train?");
}

}  // namespace
}  // namespace qat
