#include <gtest/gtest.h>

#include "qat/recipe/recipe.h"

namespace qat {
namespace {

KvCacheSpec spec_of(const std::string& section) {
  return *parse_recipe(
              "version: 1\nlayers: [{match: \"*\", weight: {dtype: int4}}]\nkv_cache: " + section,
              "r")
              .kv_cache;
}

std::string problem_of(const std::string& section) {
  try {
    spec_of(section);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

TEST(KvCacheSpec, RecipesDescribeIt) {
  EXPECT_EQ(describe(spec_of("{dtype: fp8_e4m3}")), "fp8_e4m3 tensor keys, fp8_e4m3 tensor values");
  EXPECT_EQ(
      describe(spec_of("{dtype: int4, recent: 64, first: 4}")),
      "int4 channel 32 asymmetric keys, int4 token asymmetric values, the latest 64 tokens as "
      "they are, the first 4 as they are");
  EXPECT_EQ(describe(spec_of("{dtype: int8, keys: head, values: head, symmetric: true}")),
            "int8 head keys, int8 head values");
}

TEST(KvCacheSpec, RecipeFaultsHaveTheirSentence) {
  EXPECT_EQ(problem_of("{dtype: int9}"),
            "r:3:19: kv_cache.dtype must be int2, int3, int4, int5, int6, int7, int8, fp8_e4m3 or "
            "fp8_e5m2, but is int9");
  EXPECT_NE(problem_of("{dtype: int8, keys: tensor}")
                .find("must be token, group or channel unless symmetric is true"),
            std::string::npos);
  EXPECT_NE(problem_of("{dtype: int8, keys: token, group_size: 4}")
                .find("must not be given unless keys or values"),
            std::string::npos);
  EXPECT_NE(problem_of("{dtype: int8, observer: minmax}")
                .find("must not be given unless keys or values are tensor or head"),
            std::string::npos);
}

}  // namespace
}  // namespace qat
