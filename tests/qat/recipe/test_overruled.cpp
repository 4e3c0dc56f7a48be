#include <gtest/gtest.h>

#include "tests/qat/recipe/small_plan.h"

namespace qat {
namespace {

TEST(Overruled, ARuleThatALaterOneOverrulesIsAnError) {
  const std::string all = "  - {match: \"*\", weight: {dtype: int8}}\n";
  EXPECT_EQ(problems_of("layers:\n  - {match: \"*.q_proj\", weight: float}\n" + all),
            "r.yaml:3:5: match must decide on a layer, but *, a later rule, decides on all that "
            "*.q_proj matches; put *.q_proj after it, or leave it out");
  EXPECT_EQ(problems_of("layers:\n" + all + all),
            "r.yaml:3:5: match must decide on a layer, but *, a later rule, decides on all that * "
            "matches; put * after it, or leave it out");
}

TEST(Overruled, RulesThatDecideOnSomethingAreNone) {
  const std::string all = "  - {match: \"*\", weight: {dtype: int8}}\n";
  const std::string input = "input: {dtype: int8, granularity: token}";
  // Its input is still in force; a single layer is an exception, even from itself.
  make_plan(recipe_of("layers:\n  - {match: \"*.q_proj\", weight: float, " + input + "}\n" + all),
            kLayers);
  make_plan(recipe_of("layers:\n  - {match: \"*.q_proj\", weight: float}\n"
                      "  - {match: model.0.q_proj, weight: {dtype: int8}}\n"),
            kLayers);
}

}  // namespace
}  // namespace qat
