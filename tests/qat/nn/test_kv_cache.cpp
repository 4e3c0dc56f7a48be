#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "qat/nn/kv_cache.h"
#include "qat/ops/kv_cache.h"
#include "qat/recipe/recipe.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

KvCacheSpec spec_of(const std::string& section) {
  return *parse_recipe(
              "version: 1\nlayers: [{match: \"*\", weight: {dtype: int4}}]\nkv_cache: " + section,
              "r")
              .kv_cache;
}

TEST(KvCache, ScalesComeFromWhatWasObserved) {
  KvCache cache(spec_of("{dtype: fp8_e4m3}"), 2, 8);
  EXPECT_FALSE(cache.key_scale().defined());
  at::Tensor key = at::zeros({1, 2, 3, 8}), value = at::zeros({1, 2, 3, 8});
  key[0][1][2][3] = -896.0;
  value[0][0][0][0] = 44.8;
  cache.observe(key, value);
  EXPECT_EQ(cache.key_scale().item<float>(), 2.0f);
  EXPECT_FLOAT_EQ(cache.value_scale().item<float>(), 0.1f);
  KvCache heads(spec_of("{dtype: fp8_e4m3, keys: head, values: head}"), 2, 8);
  heads.observe(key, value);
  EXPECT_TRUE(at::equal(heads.key_scale(), at::tensor({2.0f, 2.0f})));
  EXPECT_EQ(heads.notes(),
            (std::vector<std::string>{"was given keys of zeros alone in 1 of 2 heads, which have "
                                      "the largest scale of the others",
                                      "was given values of zeros alone in 1 of 2 heads, which have "
                                      "the largest scale of the others"}));
}

// They fit under any scale, and say nothing of what else may come.
TEST(KvCache, ZerosAloneHaveNoRange) {
  KvCache cache(spec_of("{dtype: int8, symmetric: true, keys: tensor, values: tensor}"), 2, 8);
  const at::Tensor key = at::full({1, 2, 3, 8}, 0.3), value = at::zeros({1, 2, 3, 8});
  cache.observe(key, value);
  EXPECT_TRUE(cache.key_scale().defined());
  EXPECT_FALSE(cache.value_scale().defined());
  EXPECT_TRUE(at::equal(std::get<1>(cache.fake_quantize(key, key)), key));
  EXPECT_EQ(cache.notes(),
            std::vector<std::string>{"was given values of zeros alone by all calibration batches, "
                                     "so its cache has no range"});
  cache.observe(key, key);
  EXPECT_TRUE(cache.value_scale().defined());
  EXPECT_TRUE(cache.notes().empty());
}

TEST(KvCache, AGroupMustDivideTheHead) {
  EXPECT_THROW(KvCache(spec_of("{dtype: int4, keys: group}"), 2, 40), std::invalid_argument);
}

// What one query after the other would see in a cache that grows token by token.
TEST(KvCache, AttentionIsThatOfACacheThatGrows) {
  at::manual_seed(0);
  const KvCacheSpec spec = spec_of("{dtype: int4, group_size: 4, recent: 3, first: 2}");
  const KvCache cache(spec, 2, 8);
  const at::Tensor query = at::randn({1, 4, 23, 8}), key = at::randn({1, 2, 23, 8}),
                   value = at::randn({1, 2, 23, 8});
  const at::Tensor found = cache.attend(query, key, value, std::nullopt, 0.3);
  const auto [rounded_key, rounded_value] = cache.fake_quantize(key, value);
  for (int64_t t = 0; t < 23; ++t) {
    at::Tensor keys = key.slice(2, 0, t + 1).clone(), values = value.slice(2, 0, t + 1).clone();
    // Whole groups after the first 2 tokens of which the last is at least 3 tokens back.
    int64_t done = 2;
    while (done + 4 <= t + 1 - 3) done += 4;
    if (done > 2) {
      keys.slice(2, 0, done).copy_(rounded_key.slice(2, 0, done));
      values.slice(2, 0, done).copy_(rounded_value.slice(2, 0, done));
    }
    keys = keys.repeat_interleave(2, 1), values = values.repeat_interleave(2, 1);
    const at::Tensor scores = at::matmul(query.slice(2, t, t + 1), keys.transpose(2, 3)) * 0.3;
    const at::Tensor expected = at::matmul(scores.softmax(-1), values);
    EXPECT_TRUE(at::allclose(found.slice(2, t, t + 1), expected, 1e-4, 1e-5)) << t;
  }
}

TEST(KvCache, AMaskIsKept) {
  const KvCache cache(spec_of("{dtype: int8, keys: token}"), 1, 8);
  const at::Tensor query = at::randn({1, 1, 4, 8}), key = at::randn({1, 1, 4, 8}),
                   value = at::randn({1, 1, 4, 8});
  const at::Tensor mask = at::full({4, 4}, kNever).fill_diagonal_(0.0);
  EXPECT_TRUE(at::allclose(cache.attend(query, key, value, mask, 1.0),
                           std::get<1>(cache.fake_quantize(key, value))));
}

TEST(KvCache, RunsWhereKeysAndValuesAre) {
  const at::Tensor query = at::randn({1, 2, 8, 16}), key = at::randn({1, 2, 8, 16}),
                   value = at::randn({1, 2, 8, 16});
  for (const char* section : {"{dtype: fp8_e4m3, keys: head, values: tensor}",
                              "{dtype: int8, symmetric: true, keys: head}",
                              "{dtype: int4, group_size: 4, recent: 2, first: 1}"}) {
    KvCache here(spec_of(section), 2, 16), there = here;
    here.observe(key, value);
    there.observe(key.to(other_device()), value.to(other_device()));
    const auto [found_key, found_value] =
        there.fake_quantize(key.to(other_device()), value.to(other_device()));
    const auto [expected_key, expected_value] = here.fake_quantize(key, value);
    EXPECT_TRUE(at::equal(found_key.cpu(), expected_key)) << section;
    EXPECT_TRUE(at::equal(found_value.cpu(), expected_value)) << section;
    const at::Tensor found = there.attend(query.to(other_device()), key.to(other_device()),
                                          value.to(other_device()), std::nullopt, 0.3);
    EXPECT_TRUE(at::allclose(found.cpu(), here.attend(query, key, value, std::nullopt, 0.3)))
        << section;
  }
}

}  // namespace
}  // namespace qat
