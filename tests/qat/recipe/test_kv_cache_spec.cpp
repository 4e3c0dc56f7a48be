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

TEST(KvCacheSpec, NumbersInBlocks) {
  const KvCacheSpec nvfp4 = spec_of("{dtype: nvfp4, recent: 8}");
  EXPECT_EQ(describe(nvfp4), "nvfp4 keys, nvfp4 values, the latest 8 tokens as they are");
  EXPECT_FALSE(nvfp4.calibrated() || nvfp4.has_outer());
  EXPECT_EQ(quantizer_of(nvfp4.key, 4, Quantizer::Mode::minmax).text(),
            "minmax fp4_e2m1 1x16 e4m3");
  const KvCacheSpec calibrated = spec_of("{dtype: nvfp4, calibrated: true, observer: percentile}");
  EXPECT_EQ(describe(calibrated), "nvfp4 calibrated keys, nvfp4 calibrated values");
  EXPECT_TRUE(calibrated.calibrated() && calibrated.has_outer());
  EXPECT_EQ(calibrated.value.observer.kind, ObserverKind::percentile);
  const KvCacheSpec mxfp4 = spec_of("{dtype: mxfp4, scale_dtype: e8m0_even}");
  EXPECT_EQ(describe(mxfp4), "mxfp4 e8m0_even keys, mxfp4 e8m0_even values");
  EXPECT_EQ(quantizer_of(mxfp4.value, 4, Quantizer::Mode::minmax).text(),
            "minmax fp4_e2m1 1x32 e8m0_even");
}

TEST(KvCacheSpec, NumbersInBlocksHaveTheirFaults) {
  EXPECT_NE(
      problem_of("{dtype: nvfp4, keys: token}")
          .find("kv_cache.keys must not be given for nvfp4, which has groups of 16 and scales "
                "of its own, but is token"),
      std::string::npos);
  EXPECT_NE(problem_of("{dtype: mxfp4, calibrated: true}")
                .find("kv_cache.calibrated must not be given unless dtype is nvfp4, but is true"),
            std::string::npos);
  EXPECT_NE(problem_of("{dtype: int8, scale_dtype: e8m0_even}")
                .find("kv_cache.scale_dtype must not be given unless dtype is one of MX"),
            std::string::npos);
  EXPECT_NE(problem_of("{dtype: nvfp4, observer: minmax}").find("kv_cache.observer must not be"),
            std::string::npos);
}

TEST(KvCacheSpec, RecipeFaultsHaveTheirSentence) {
  EXPECT_EQ(
      problem_of("{dtype: int9}"),
      "r:3:19: kv_cache.dtype must be int2, int3, int4, int5, int6, int7, int8, fp8_e4m3, "
      "fp8_e5m2, nvfp4, mxfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3 or mxfp8_e5m2, but is int9");
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
