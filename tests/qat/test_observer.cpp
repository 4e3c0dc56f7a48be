#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/observer.h"

namespace qat {
namespace {

QuantSpec int8_tensor() {
  QuantSpec spec;
  spec.granularity = Granularity::tensor;
  spec.scale_dtype = c10::ScalarType::Float;
  return spec;
}

TEST(MinMaxObserver, JoinsBatchesAndIgnoresWhatIsNotFinite) {
  MinMaxObserver observer;
  observer.observe(at::tensor({1.0f, 2.0f, NAN}));
  observer.observe(at::tensor({-5.0f, INFINITY}));
  EXPECT_EQ(observer.low(), -5.0);
  EXPECT_EQ(observer.high(), 2.0);
  EXPECT_EQ(observer.ignored(), 2);
}

TEST(MinMaxObserver, GivesTheScaleOfItsRange) {
  MinMaxObserver observer;
  observer.observe(at::tensor({-254.0f, 3.0f}));
  EXPECT_EQ(std::get<0>(observer.qparams(int8_tensor(), 8)).item<float>(), 2.0f);
}

TEST(MinMaxObserver, SeeingNothingGivesScaleOne) {
  MinMaxObserver observer;
  observer.observe(at::full({3}, NAN));
  EXPECT_TRUE(observer.empty());
  EXPECT_EQ(std::get<0>(observer.qparams(int8_tensor(), 8)).item<float>(), 1.0f);
}

}  // namespace
}  // namespace qat
