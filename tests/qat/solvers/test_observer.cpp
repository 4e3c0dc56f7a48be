#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qat/solvers/observer.h"

namespace qat {
namespace {

QuantSpec int8_tensor() {
  QuantSpec spec;
  spec.granularity = Granularity::tensor;
  spec.scale_dtype = c10::ScalarType::Float;
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
