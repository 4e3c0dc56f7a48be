#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <future>
#include <stdexcept>

#include "qat/nn/weight_cache.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

const Quantizer kQuantizer = Quantizer::parse("minmax int4 full 1x32 bfloat16");

std::vector<at::Tensor> get(WeightCache& cache, const at::Tensor& weight) {
  return cache.get(kQuantizer, weight, {}, at::kFloat);
}

TEST(WeightCache, NamesRoundTrip) {
  for (const auto policy :
       {CachePolicy::automatic, CachePolicy::none, CachePolicy::codes, CachePolicy::weights})
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

// A weight that was rounded for one product may have lain in a larger buffer than its own.
TEST(WeightCache, KeepsNoBufferThatIsLargerThanTheWeight) {
  release_kept_memory();
  const int64_t base = kept_bytes();
  const at::Tensor small = at::randn({512, 512}), large = at::randn({2048, 1024});
  std::vector<WeightCache> caches(4, WeightCache(CachePolicy::weights));
  for (WeightCache& cache : caches) {
    kQuantizer(large, {}, at::kFloat);
    get(cache, small);
  }
  const auto size = [](const at::Tensor& one) { return static_cast<int64_t>(one.nbytes()); };
  EXPECT_LE(kept_bytes() - base, 4 * size(small) + size(large));
}

std::function<void()> during_operators;
std::vector<std::future<int64_t>> pending;

std::unique_ptr<at::ObserverContext> call_during(const at::RecordFunction&) {
  const at::DisableRecordFunctionGuard once;
  during_operators();
  return nullptr;
}

// Operators may run Python, which waits for threads that may wait for the cache.
TEST(WeightCache, ThreadsDoNotWaitForAnOperatorOfAnother) {
  for (const auto policy : {CachePolicy::codes, CachePolicy::weights}) {
    WeightCache cache(policy);
    const at::Tensor weight = at::randn({16, 64});
    int calls = 0, waited = 0;
    during_operators = [&] {
      auto other = std::async(std::launch::async, [&] { return cache.bytes(); });
      ++calls;
      waited += other.wait_for(std::chrono::milliseconds(500)) != std::future_status::ready;
      // Its destructor waits as long as it takes, which the lock of get() would never end.
      pending.push_back(std::move(other));
    };
    const auto handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&call_during).scopes({at::RecordScope::FUNCTION}));
    get(cache, weight);
    at::removeCallback(handle);
    pending.clear();
    EXPECT_GT(calls, 0);
    EXPECT_EQ(waited, 0);
  }
}

TEST(WeightCache, NoneKeepsNothing) {
  for (const auto policy : {CachePolicy::none, CachePolicy::automatic}) {
    WeightCache cache(policy);
    EXPECT_TRUE(get(cache, at::randn({16, 64})).empty());
    EXPECT_EQ(cache.bytes(), 0);
  }
}

// Small weights by several threads at once, large ones one after the other.
TEST(WeightCache, AllAreFilledInOneCallToTheBitsOfEach) {
  const std::vector<std::vector<int64_t>> shapes{{16, 64}, {1024, 512}, {7, 96}, {640, 512}};
  for (const auto policy : {CachePolicy::codes, CachePolicy::weights}) {
    std::vector<WeightCache> caches(shapes.size(), WeightCache(policy));
    std::vector<CachedWeight> all;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const at::Tensor weight = at::randn(shapes[i]);
      get(caches[i], weight);
      weight.mul_(1.5);
      all.push_back({&caches[i], kQuantizer, weight, {}});
    }
    fill(all);
    for (const CachedWeight& one : all) {
      EXPECT_EQ(one.cache->version(), 2);
      WeightCache alone(policy);
      const auto expected = get(alone, one.weight), found = get(*one.cache, one.weight);
      EXPECT_EQ(one.cache->version(), 2);  // it was there
      ASSERT_EQ(found.size(), expected.size());
      for (size_t part = 0; part < found.size(); ++part)
        EXPECT_TRUE(at::equal(found[part], expected[part]));
    }
  }
}

TEST(WeightCache, OneThatNoForwardAskedStaysEmpty) {
  WeightCache cache(CachePolicy::weights);
  fill({{&cache, kQuantizer, at::randn({16, 64}), {}}});
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
