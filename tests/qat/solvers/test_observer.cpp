#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>
#include <vector>

#include "qat/solvers/observer.h"
#include "tests/qat/host_reads.h"

namespace qat {
namespace {

QuantSpec int8_tensor() {
  QuantSpec spec;
  spec.granularity = Granularity::tensor;
  spec.scale = {ScaleCode::float32};
  return spec;
}

Observer observer_of(ObserverKind kind) { return Observer(ObserverSpec{kind, 99.0, 0.25}); }

float scale_of(const Observer& observer, int bits = 8) {
  return std::get<0>(observer.qparams(int8_tensor(), bits)).item<float>();
}

TEST(Observer, JoinsBatchesAndIgnoresWhatIsNotFinite) {
  Observer observer;
  observer.observe(at::tensor({1.0f, 2.0f, NAN}));
  observer.observe(at::tensor({-5.0f, INFINITY}));
  EXPECT_EQ(observer.low(), -5.0);
  EXPECT_EQ(observer.high(), 2.0);
  EXPECT_EQ(observer.ignored(), 2);
}

TEST(Observer, GivesTheScaleOfItsRange) {
  Observer observer;
  observer.observe(at::tensor({-254.0f, 3.0f}));
  EXPECT_EQ(scale_of(observer), 2.0f);
}

TEST(Observer, SeeingNothingGivesScaleOne) {
  Observer observer;
  observer.observe(at::full({3}, NAN));
  EXPECT_TRUE(observer.empty());
  EXPECT_EQ(scale_of(observer), 1.0f);
}

TEST(Observer, ThreadsMayShareOne) {
  const at::Tensor batch = at::cat({at::arange(-1000, 1000, at::kFloat), at::full({1}, NAN)});
  for (const auto kind : {ObserverKind::minmax, ObserverKind::percentile}) {
    Observer alone = observer_of(kind), shared = observer_of(kind);
    for (int i = 0; i < 400; ++i) alone.observe(batch);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread)
      threads.emplace_back([&] {
        for (int i = 0; i < 100; ++i) {
          shared.observe(batch);
          if (i % 10 == 0) scale_of(shared);
        }
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(shared.ignored(), 400) << name_of(kind);
    EXPECT_EQ(scale_of(shared), scale_of(alone)) << name_of(kind);
  }
}

TEST(Observer, ACopyHasARangeOfItsOwn) {
  Observer observer;
  observer.observe(at::tensor({-1.0f, 2.0f}));
  const Observer copy(observer);
  observer.observe(at::tensor({-3.0f, NAN}));
  EXPECT_EQ(copy.low(), -1.0);
  EXPECT_EQ(copy.ignored(), 0);
  EXPECT_EQ(observer.low(), -3.0);
}

TEST(Observer, FollowingARangeDoesNotWaitForTheDevice) {
  for (const auto kind : {ObserverKind::minmax, ObserverKind::moving_average}) {
    Observer observer = observer_of(kind);
    const HostReads reads;
    for (int i = 0; i < 3; ++i) {
      observer.observe(at::randn({4, 8}, at::kBFloat16));
      observer.range();
      observer.qparams(int8_tensor(), 8);
    }
    EXPECT_EQ(reads.count(), 0) << name_of(kind);
  }
}

// The arithmetic of numerics.md (24), in float64 on the host, each range rounded to float32.
TEST(Observer, TheMovingAverageHasTheBitsOfItsEquation) {
  Observer observer(ObserverSpec{ObserverKind::moving_average, 99.0, 0.01});
  double low = 0.0, high = 0.0;
  for (int step = 0; step < 100; ++step) {
    const at::Tensor batch = at::randn({64}, step % 2 == 0 ? at::kFloat : at::kHalf);
    observer.observe(batch);
    const double least = batch.min().item<double>(), most = batch.max().item<double>();
    low = step == 0 ? least : static_cast<float>(low + 0.01 * (least - low));
    high = step == 0 ? most : static_cast<float>(high + 0.01 * (most - high));
    ASSERT_EQ(observer.low(), low);
    ASSERT_EQ(observer.high(), high);
    if (step % 10 == 0) observer.observe(at::full({3}, INFINITY));  // which changes nothing
  }
  const auto [at_low, at_high] = observer.range();
  EXPECT_EQ(at_low.item<double>(), low);
  EXPECT_EQ(at_high.item<double>(), high);
}

TEST(Observer, GoesOnFromARangeOnTheDevice) {
  Observer observer;
  observer.restore(at::full({1, 1}, -2.0f), at::full({1, 1}, 254.0f));
  EXPECT_TRUE(observer.observed());
  EXPECT_EQ(scale_of(observer), 2.0f);
  observer.reset();
  EXPECT_FALSE(observer.observed());
  EXPECT_EQ(scale_of(observer), 1.0f);
}

TEST(Observer, AMovingAverageBeginsAtTheFirstBatch) {
  Observer observer = observer_of(ObserverKind::moving_average);
  observer.observe(at::tensor({-8.0f, 4.0f}));
  EXPECT_EQ(observer.low(), -8.0);
  observer.observe(at::tensor({-16.0f, 0.0f}));
  EXPECT_EQ(observer.low(), -10.0);
  EXPECT_EQ(observer.high(), 3.0);
}

TEST(Observer, APercentileLeavesOutTheTail) {
  Observer observer = observer_of(ObserverKind::percentile);
  // 1 to 1000, of either sign: 99 % of the magnitudes are at most 990.
  const at::Tensor values = at::arange(1, 1001, at::kFloat);
  observer.observe(values);
  observer.observe(-values);
  EXPECT_NEAR(scale_of(observer) * 127.0f, 990.0f, 1.0f);
  QuantSpec sided = int8_tensor();
  sided.grid = Grid::asymmetric;
  // On each side 1 % of all 2000 values, which are 20.
  EXPECT_NEAR(std::get<0>(observer.qparams(sided, 8)).item<float>() * 255.0f, 1960.0f, 2.0f);
}

TEST(Observer, TheSquaredErrorOfItsScaleIsLeast) {
  at::manual_seed(0);
  Observer observer = observer_of(ObserverKind::mse);
  const at::Tensor x = at::cat({at::randn({1 << 15}), at::full({1}, 30.0f)});
  observer.observe(x);
  const auto error = [&](double scale) {
    return (x - (x / scale).round().clamp(-7, 7) * scale).square().sum().item<double>();
  };
  const double found = scale_of(observer, 4);
  double least = error(30.0 / 7.0);
  for (int step = 1; step <= 80; ++step)
    least = std::min(least, error(30.0 / 7.0 * (1.0 - 0.01 * step)));
  EXPECT_LE(error(found), 1.01 * least);
  EXPECT_LT(found, 0.5 * 30.0 / 7.0);
}

TEST(Observer, EntropyClipsARareOutlier) {
  at::manual_seed(0);
  Observer observer = observer_of(ObserverKind::entropy);
  observer.observe(at::cat({at::randn({1 << 16}), at::full({1}, 60.0f)}));
  EXPECT_LT(scale_of(observer) * 127.0f, 10.0f);
  EXPECT_GT(scale_of(observer) * 127.0f, 3.0f);
}

TEST(Observer, AConstantHasItsOwnScale) {
  for (const auto kind : {ObserverKind::minmax, ObserverKind::moving_average,
                          ObserverKind::percentile, ObserverKind::mse, ObserverKind::entropy}) {
    Observer observer = observer_of(kind);
    observer.observe(at::full({100}, 2.54f));
    EXPECT_NEAR(scale_of(observer), 0.02f, 1e-4) << name_of(kind);
    observer.reset();
    observer.observe(at::zeros({100}));
    EXPECT_EQ(scale_of(observer), 1.0f) << name_of(kind);
  }
}

}  // namespace
}  // namespace qat
