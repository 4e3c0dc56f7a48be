#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qat/ops/affine.h"

namespace qat {
namespace {

constexpr QuantRange kInt4{-8.0f, 7.0f};
constexpr QuantRange kInt8{-128.0f, 127.0f};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Affine, TiesGoToEvenBeforeTheZeroPointJoins) {
  EXPECT_EQ(affine::quantize(0.5f, 1.0f, 0.0f, kInt8), 0.0f);
  EXPECT_EQ(affine::quantize(1.5f, 1.0f, 0.0f, kInt8), 2.0f);
  EXPECT_EQ(affine::quantize(-0.5f, 1.0f, 0.0f, kInt8), 0.0f);
  EXPECT_EQ(affine::quantize(0.5f, 1.0f, 1.0f, kInt8), 1.0f);
  EXPECT_EQ(affine::quantize(2.5f, 1.0f, 1.0f, kInt8), 3.0f);
}

TEST(Affine, MultipliesByTheReciprocal) {
  // The number that tells x * (1/s) from x / s: they round to different levels.
  const float scale = 0.00214854861f, x = 0.273939937f;
  EXPECT_EQ(affine::level_of(x, 1.0f / scale, 0.0f), 128.0f);
  EXPECT_EQ(std::nearbyint(x / scale), 127.0f);
}

TEST(Affine, HugeValuesSaturate) {
  EXPECT_EQ(affine::quantize(1e38f, 1e3f, 0.0f, kInt4), 7.0f);
  EXPECT_EQ(affine::quantize(-1e38f, 1e3f, 0.0f, kInt4), -8.0f);
}

TEST(Affine, NanLandsOnTheLowestLevelAndComesOutAsNan) {
  EXPECT_EQ(affine::quantize(NAN, 1.0f, 0.0f, kInt4), -8.0f);
  EXPECT_TRUE(std::isnan(affine::fake_quantize(NAN, 1.0f, 1.0f, 0.0f, kInt4)));
}

TEST(Affine, InfinityDoesNotHideBehindALevel) {
  EXPECT_TRUE(std::isnan(affine::fake_quantize(kInfinity, 1.0f, 1.0f, 0.0f, kInt4)));
  EXPECT_TRUE(std::isnan(affine::fake_quantize(-kInfinity, 1.0f, 1.0f, 0.0f, kInt4)));
}

TEST(Affine, NegativeZeroBecomesPositive) {
  EXPECT_FALSE(std::signbit(affine::fake_quantize(-0.2f, 1.0f, 1.0f, 0.0f, kInt4)));
}

TEST(Affine, GradientFollowsTheRoundedLevel) {
  // 7.4 rounds to 7, inside; 7.6 rounds to 8, outside, although both lie within half a step of 7.5.
  EXPECT_EQ(affine::straight_through(3.0f, 7.4f, 1.0f, 0.0f, kInt4), 3.0f);
  EXPECT_EQ(affine::straight_through(3.0f, 7.6f, 1.0f, 0.0f, kInt4), 0.0f);
  EXPECT_EQ(affine::straight_through(3.0f, NAN, 1.0f, 0.0f, kInt4), 0.0f);
  EXPECT_EQ(affine::straight_through(3.0f, kInfinity, 1.0f, 0.0f, kInt4), 0.0f);
}

TEST(Affine, ScaleGradientHasThreeCases) {
  EXPECT_FLOAT_EQ(affine::scale_gradient(2.0f, 1.25f, 1.0f, 0.0f, kInt4), 2.0f * (1.0f - 1.25f));
  EXPECT_EQ(affine::scale_gradient(2.0f, 100.0f, 1.0f, 1.0f, kInt4), 2.0f * (7.0f - 1.0f));
  EXPECT_EQ(affine::scale_gradient(2.0f, -100.0f, 1.0f, 1.0f, kInt4), 2.0f * (-8.0f - 1.0f));
  EXPECT_EQ(affine::scale_gradient(2.0f, NAN, 1.0f, 0.0f, kInt4), 0.0f);
}

TEST(Affine, ZeroPointGradientComesFromClippedElementsOnly) {
  EXPECT_EQ(affine::zero_point_gradient(2.0f, 1.0f, 0.5f, 2.0f, 0.0f, kInt4), 0.0f);
  EXPECT_EQ(affine::zero_point_gradient(2.0f, 100.0f, 0.5f, 2.0f, 0.0f, kInt4), -1.0f);
  EXPECT_EQ(affine::zero_point_gradient(2.0f, kInfinity, 0.5f, 2.0f, 0.0f, kInt4), 0.0f);
}

TEST(Affine, FiniteNumbersReachToTheGreatestFloat) {
  EXPECT_TRUE(is_finite(-std::numeric_limits<float>::max()));
  EXPECT_TRUE(is_finite(2e38f));
  EXPECT_FALSE(is_finite(-kInfinity));
  EXPECT_FALSE(is_finite(NAN));
}

TEST(Affine, DequantizeTakesTheZeroPointOffAndScales) {
  EXPECT_EQ(affine::dequantize(5.0f, 0.5f, 2.0f), 1.5f);
}

TEST(Affine, GradientsPassOnBothEndsOfTheGrid) {
  EXPECT_EQ(affine::straight_through(3.0f, -8.0f, 1.0f, 0.0f, kInt4), 3.0f);
  EXPECT_EQ(affine::straight_through(3.0f, 7.0f, 1.0f, 0.0f, kInt4), 3.0f);
}

TEST(Affine, ScaleGradientWithAnyScaleAndZeroPoint) {
  // 1.25 / 0.5 = 2.5 rounds to 2.
  EXPECT_EQ(affine::scale_gradient(2.0f, 1.25f, 2.0f, 1.0f, kInt4), 2.0f * (2.0f - 2.5f));
  // 6 + 3 lies above the grid, 6 - 3 would not.
  EXPECT_EQ(affine::scale_gradient(2.0f, 6.0f, 1.0f, 3.0f, kInt4), 2.0f * (7.0f - 3.0f));
}

}  // namespace
}  // namespace qat
