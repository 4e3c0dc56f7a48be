// A program may have set a locale that writes 0.01 as 0,01 and 4096 as 4.096: recipes are read, and
// errors and plans written, as ever.
#include <gtest/gtest.h>

#include <clocale>
#include <locale>
#include <string>

#include "qat/recipe/plan.h"

namespace qat {
namespace {

struct Commas : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

// Commas for streams; for C's functions as well on a machine with such a locale.
class Locale : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"})
      if (std::setlocale(LC_NUMERIC, name)) break;
  }
  void TearDown() override {
    std::locale::global(before_);
    std::setlocale(LC_NUMERIC, "C");
  }

 private:
  std::locale before_ = std::locale::global(std::locale(std::locale(), new Commas));
};

const std::string kHead = "version: 1\nlayers:\n  - match: a\n    weight: ";

TEST_F(Locale, NumbersOfARecipeHaveAPoint) {
  const Recipe recipe =
      parse_recipe(kHead +
                       "{dtype: int4, block: [1024, 2048]}\n"
                       "initialize: {method: smoothquant+gptq, damping: 0.025, block_size: 4096, smoothing: +7.5e-1}\n"
                       "schedule: [{until: 62.5%, weight: int8}, {until: 4096}]\n"
                       "train: {steps: 4096, learning_rate: 1.5e-4}\n",
                   "r");
  EXPECT_EQ(recipe.layers[0].weight.spec->block, (std::array<int64_t, 2>{1024, 2048}));
  EXPECT_EQ(recipe.initialize.damping, 0.025);
  EXPECT_EQ(recipe.initialize.block_size, 4096);
  EXPECT_EQ(recipe.initialize.smoothing, 0.75);
  EXPECT_EQ(recipe.schedule[0].until.value, 62.5);
  EXPECT_EQ(recipe.schedule[1].until.step_of(4096), 4096);
  EXPECT_EQ(recipe.train.steps, 4096);
}

TEST_F(Locale, ItsOwnNumbersAreNone) {
  EXPECT_THROW(parse_recipe(kHead + "{dtype: int4}\ninitialize: {damping: \"0,01\"}\n", "r"),
               RecipeError);
  EXPECT_THROW(parse_recipe(kHead + "{dtype: int4}\ntrain: {steps: 4.096}\n", "r"), RecipeError);
  EXPECT_THROW(parse_recipe(kHead + "{dtype: int4}\nschedule: [{until: \"62,5%\"}]\n", "r"),
               RecipeError);
}

TEST_F(Locale, ErrorsAreTheSame) {
  try {
    parse_recipe(std::string(1200, '\n') + kHead + "{dtype: int4, group_size: 3000000}\n" +
                     "initialize: {correction: 1.5}\ndistill: {temperature: hot}\n",
                 "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_STREQ(
        error.what(),
        "r:1204:39: layers[0].weight.group_size must be a whole number from 1 to 1048576, but is "
        "3000000\n"
        "r:1205:26: initialize.correction must be a number from 0 to 1, but is 1.5\n"
        "r:1206:24: distill.temperature must be a number from 0.01 to 100, but is hot");
  }
}

TEST_F(Locale, PlansAreTheSame) {
  const Recipe recipe = parse_recipe(
      kHead +
          "{dtype: int4, group_size: 2048}\n"
          "schedule: [{until: 62.5%, weight: int8}, {until: 4096}]\ntrain: {steps: 4096}\n",
      "r");
  EXPECT_EQ(to_text(make_plan(recipe, {{"a", "Linear", 4096, 11008, false}})),
            "a  [11008, 4096]  weight int4 group 2048 narrow, minmax scale in bfloat16\n"
            "1 layers quantized, 0 layers left alone\n"
            "100.0 % of all parameters, 100.0 % of the weights that are multiplied are quantized\n"
            "until 62.5%: weights int8, inputs as exported\n"
            "until 4096 steps: weights as exported, inputs as exported\n");
}

}  // namespace
}  // namespace qat
