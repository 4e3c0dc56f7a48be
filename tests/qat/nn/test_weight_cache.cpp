#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "qat/nn/weight_cache.h"

namespace qat {
namespace {

const Quantizer kQuantizer = Quantizer::parse("minmax int4 full 1x32 bfloat16");

std::vector<at::Tensor> get(WeightCache& cache, const at::Tensor& weight) {
  return cache.get(kQuantizer, weight, std::nullopt, std::nullopt, at::kFloat);
}

TEST(WeightCache, NamesRoundTrip) {
  for (const auto policy : {CachePolicy::none, CachePolicy::codes, CachePolicy::weights})
    EXPECT_EQ(parse_cache_policy(name_of(policy)), policy);
  EXPECT_THROW(parse_cache_policy("all"), std::invalid_argument);
}

TEST(WeightCache, KeepsUntilTheWeightIsWritten) {
  for (const auto policy : {CachePolicy::codes, CachePolicy::weights}) {
    WeightCache cache(policy);
    at::Tensor weight = at::randn({16, 64});
    const void* first = get(cache, weight)[0].data_ptr();
    EXPECT_EQ(get(cache, weight)[0].data_ptr(), first);
    const at::Tensor before = get(cache, weight)[0].clone();
    weight.add_(1.0);
    EXPECT_FALSE(at::equal(get(cache, weight)[0], before));
  }
}

TEST(WeightCache, NoneKeepsNothing) {
  WeightCache cache;
  EXPECT_TRUE(get(cache, at::randn({16, 64})).empty());
  EXPECT_EQ(cache.bytes(), 0);
}

TEST(WeightCache, ACopyBeginsEmpty) {
  WeightCache cache(CachePolicy::codes);
  get(cache, at::randn({16, 64}));
  const WeightCache copy(cache);
  EXPECT_EQ(copy.policy(), CachePolicy::codes);
  EXPECT_EQ(copy.bytes(), 0);
  EXPECT_EQ(cache.bytes(), 16 * 32 + 32 * 5);
}

}  // namespace
}  // namespace qat
