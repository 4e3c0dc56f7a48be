#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "qat/ops/affine.h"

namespace qat {
namespace {

constexpr WholeLevels kInt4{-8.0f, 7.0f};
constexpr WholeLevels kInt8{-128.0f, 127.0f};
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
  EXPECT_EQ(affine::level_of(x, 1.0f / scale, 0.0f, kInt8), 128.0f);
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

// Levels of floats, against a list of all numbers of the format, searched in float64.
struct Minifloat {
  const char* name;
  Levels levels;
  int exponent_bits;
  int bias;
  int codes;  // from 0 up to the largest finite number
};

const Minifloat kMinifloats[] = {{"e2m1", {-6.0f, 6.0f, 1, 0}, 2, 1, 8},
                                 {"e2m3", {-7.5f, 7.5f, 3, 0}, 2, 1, 32},
                                 {"e3m2", {-28.0f, 28.0f, 2, -2}, 3, 3, 32},
                                 {"e4m3", {-448.0f, 448.0f, 3, -6}, 4, 7, 127},
                                 {"e5m2", {-57344.0f, 57344.0f, 2, -14}, 5, 15, 124}};

// The number that the bits of a code stand for.
double number_of(const Minifloat& type, int code) {
  const int bits = type.levels.mantissa_bits, exponent = code >> bits;
  const double mantissa = std::ldexp(code & ((1 << bits) - 1), -bits);
  return exponent == 0 ? std::ldexp(mantissa, 1 - type.bias)
                       : std::ldexp(1.0 + mantissa, exponent - type.bias);
}

// The nearest of them; of two, the one whose code is even.
double nearest_number(const Minifloat& type, double u) {
  const double magnitude = std::min<double>(std::abs(u), type.levels.max);
  int best = 0;
  for (int code = 1; code < type.codes; ++code) {
    const double gain =
        std::abs(number_of(type, best) - magnitude) - std::abs(number_of(type, code) - magnitude);
    if (gain > 0.0 || (gain == 0.0 && code % 2 == 0)) best = code;
  }
  return std::copysign(number_of(type, best), u);
}

void expect_nearest(const Minifloat& type, float u) {
  EXPECT_EQ(nearest_level(u, type.levels), static_cast<float>(nearest_number(type, u)))
      << type.name << " " << u;
}

TEST(FloatLevels, EveryHalfPrecisionNumberGoesToTheNearest) {
  for (const Minifloat& type : kMinifloats)
    for (int pattern = 0; pattern < 0x10000; ++pattern) {
      const float wide = float_of(pattern << 16);
      if (std::isfinite(wide)) expect_nearest(type, wide);
      const float half = c10::Half(static_cast<uint16_t>(pattern), c10::Half::from_bits());
      if (std::isfinite(half)) expect_nearest(type, half);
    }
}

TEST(FloatLevels, EveryBorderAndItsNeighboursInFloat32) {
  for (const Minifloat& type : kMinifloats)
    for (int code = 0; code + 1 < type.codes; ++code) {
      const auto border =
          static_cast<float>((number_of(type, code) + number_of(type, code + 1)) / 2.0);
      for (const float u : {border, std::nextafter(border, 0.0f), std::nextafter(border, 1e9f)}) {
        expect_nearest(type, u);
        expect_nearest(type, -u);
      }
    }
}

TEST(FloatLevels, LevelsStayThemselvesAndOrderIsKept) {
  for (const Minifloat& type : kMinifloats) {
    float last = -FLT_MAX;
    for (int code = 1 - type.codes; code < type.codes; ++code) {
      const auto level = static_cast<float>(std::copysign(number_of(type, std::abs(code)), code));
      EXPECT_EQ(nearest_level(level, type.levels), level) << type.name;
      EXPECT_GT(level, last);
      last = level;
    }
    EXPECT_EQ(last, type.levels.max);
  }
}

TEST(FloatLevels, SaturateAndSendNanToTheLowest) {
  for (const Minifloat& type : kMinifloats) {
    EXPECT_EQ(nearest_level(FLT_MAX, type.levels), type.levels.max);
    EXPECT_EQ(nearest_level(-kInfinity, type.levels), type.levels.min);
    EXPECT_EQ(nearest_level(NAN, type.levels), type.levels.min);
    EXPECT_FALSE(std::signbit(nearest_level(-0.0f, type.levels)));
  }
}

TEST(FloatLevels, GradientsPassUntilTheRoundedNumberLeavesTheFormat) {
  // Halfway to the number after the largest: of 448, whose mantissa is even, it stays; of 6 it goes.
  for (const auto& [type, tie, stays] :
       {std::tuple(3, 464.0f, true), std::tuple(0, 7.0f, false), std::tuple(1, 7.75f, false),
        std::tuple(2, 30.0f, false), std::tuple(4, 61440.0f, false)}) {
    const FloatLevels levels = float_levels(kMinifloats[type].levels);
    const float inside = stays ? tie : std::nextafter(tie, 0.0f);
    const float outside = stays ? std::nextafter(tie, kInfinity) : tie;
    for (const float sign : {1.0f, -1.0f}) {
      for (const float scale : {1.0f, 0.5f}) {
        const auto gradient = [&](float u) {
          return affine::straight_through(3.0f, sign * u * scale, 1.0f / scale, 0.0f, levels);
        };
        EXPECT_EQ(gradient(inside), 3.0f) << type;
        EXPECT_EQ(gradient(outside), 0.0f) << type;
      }
      EXPECT_EQ(affine::scale_gradient(2.0f, sign * FLT_MAX, 1.0f, 0.0f, levels),
                2.0f * sign * levels.max);
    }
    EXPECT_EQ(affine::straight_through(3.0f, kInfinity, 1.0f, 0.0f, levels), 0.0f);
    EXPECT_EQ(affine::straight_through(3.0f, NAN, 1.0f, 0.0f, levels), 0.0f);
    EXPECT_EQ(affine::scale_gradient(2.0f, NAN, 1.0f, 0.0f, levels), 0.0f);
  }
  const FloatLevels e2m1 = float_levels(kMinifloats[0].levels);
  EXPECT_EQ(affine::scale_gradient(2.0f, 1.2f, 1.0f, 0.0f, e2m1), 2.0f * (1.0f - 1.2f));
  EXPECT_EQ(affine::fake_quantize(2.6f, 0.5f, 2.0f, 0.0f, e2m1), 3.0f);  // 5.2 lies nearer 6
}

TEST(WholeLevels, NearestLevelRoundsAndSaturates) {
  EXPECT_EQ(nearest_level(2.5f, {-8.0f, 7.0f}), 2.0f);
  EXPECT_EQ(nearest_level(9.0f, {-8.0f, 7.0f}), 7.0f);
}

}  // namespace
}  // namespace qat
