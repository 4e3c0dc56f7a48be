#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "qat/ops/qparams.h"

namespace qat {
namespace {

using enum ScaleCode;

QParams qparams(float low, float high, Grid grid, int bits, ScaleCode code) {
  return qparams_of(low, high, grid, levels_of(grid, bits), code);
}

TEST(QParams, RangesOfTheGrids) {
  EXPECT_EQ(levels_of(Grid::narrow, 4).min, -7.0f);
  EXPECT_EQ(levels_of(Grid::full, 4).min, -8.0f);
  EXPECT_EQ(levels_of(Grid::asymmetric, 8).min, -128.0f);
  EXPECT_EQ(levels_of(Grid::narrow, 8).max, 127.0f);
  EXPECT_EQ(levels_of(Grid::extreme, 2).max, 1.0f);
}

TEST(QParams, SymmetricGridsDivideTheLargestMagnitude) {
  EXPECT_EQ(qparams(-3.5f, 7.0f, Grid::narrow, 4, float32).scale, 1.0f);
  EXPECT_EQ(qparams(-7.5f, 3.0f, Grid::full, 4, float32).scale, 1.0f);
}

TEST(QParams, SignedGridPutsTheExtremeOnTheLowestLevel) {
  EXPECT_EQ(qparams(-8.0f, 3.0f, Grid::extreme, 4, float32).scale, 1.0f);
  EXPECT_EQ(qparams(-3.0f, 8.0f, Grid::extreme, 4, float32).scale, -1.0f);
  EXPECT_EQ(qparams(-8.0f, 8.0f, Grid::extreme, 4, float32).scale, 1.0f);
}

TEST(QParams, AsymmetricRangeContainsZero) {
  const QParams positive = qparams(5.0f, 15.0f, Grid::asymmetric, 4, float32);
  EXPECT_EQ(positive.scale, 1.0f);
  EXPECT_EQ(positive.zero_point, -8.0f);
  const QParams both = qparams(-5.0f, 10.0f, Grid::asymmetric, 4, float32);
  EXPECT_EQ(both.scale, 1.0f);
  EXPECT_EQ(both.zero_point, -3.0f);
}

TEST(QParams, TheScaleIsRoundedToItsStoredDtype) {
  const float scale = qparams(-1.0f, 1.0f, Grid::narrow, 4, bfloat16).scale;
  EXPECT_EQ(scale, static_cast<float>(c10::BFloat16(1.0f / 7.0f)));
  EXPECT_NE(scale, 1.0f / 7.0f);
}

TEST(QParams, AnAllZeroBlockHasScaleOne) {
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
    EXPECT_EQ(qparams(0.0f, 0.0f, grid, 4, float16).scale, 1.0f);
}

TEST(QParams, TinyAndHugeScalesStayInvertible) {
  EXPECT_EQ(stored_scale(1e-30f, float16), 6.103515625e-05f);
  EXPECT_EQ(stored_scale(-1e-30f, float16), -6.103515625e-05f);
  EXPECT_EQ(stored_scale(1e30f, float16), 65504.0f);
  EXPECT_TRUE(std::isfinite(1.0f / stored_scale(1e-44f, float32)));
  EXPECT_TRUE(std::isfinite(stored_scale(3.4e38f, bfloat16)));
  EXPECT_EQ(stored_scale(NAN, float32), 1.0f);
}

// (7b), over every float16 scale that a checkpoint may hold: what Q4_1 stores is exact.
TEST(QParams, Float16ScalesOfAsymmetricFourBitGridsTimesALevelAreFloat16) {
  for (uint16_t pattern = 0x0400; pattern < 0x6C00; ++pattern) {  // 2^-14 to 4096
    const float exact = c10::Half(pattern, c10::Half::from_bits());
    const float scale = stored_scale(exact, float16, 1.0f, /*exact_offsets=*/true);
    EXPECT_NEAR(scale, exact, exact * 0x1p-7f);
    for (int level = 0; level < 16; ++level) {
      const float product = scale * static_cast<float>(level);
      EXPECT_EQ(static_cast<float>(c10::Half(product)), product) << exact << " * " << level;
    }
  }
  EXPECT_EQ(stored_scale(1e30f, float16, 1.0f, true), 65024.0f);
  EXPECT_EQ(round_to_7_bits(129.0f), 128.0f);  // ties to even
  EXPECT_EQ(round_to_7_bits(131.0f), 132.0f);
  const QParams found = qparams(-1.0f, 2.1f, Grid::asymmetric, 4, float16);
  EXPECT_EQ(found.scale, round_to_7_bits(3.1f / 15.0f));
  const QParams eight = qparams(-1.0f, 2.1f, Grid::asymmetric, 8, float16);
  EXPECT_EQ(eight.scale, static_cast<float>(c10::Half(3.1f / 255.0f)));
}

TEST(QParams, TheWidestRangeDoesNotOverflow) {
  const QParams widest = qparams(-3.4e38f, 3.4e38f, Grid::asymmetric, 8, float32);
  EXPECT_TRUE(std::isfinite(widest.scale));
  EXPECT_NEAR(widest.scale, 3.4e38 * 2.0 / 255.0, 1e31);
}

TEST(QParams, Float8Grids) {
  for (const Grid grid : {Grid::e4m3, Grid::e5m2}) EXPECT_TRUE(is_float8(grid));
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
    EXPECT_FALSE(is_float8(grid));
  EXPECT_EQ(levels_of(Grid::e4m3, 8).min, -448.0f);
  EXPECT_EQ(levels_of(Grid::e4m3, 8).max, 448.0f);
  EXPECT_EQ(levels_of(Grid::e5m2, 8).min, -57344.0f);
  EXPECT_EQ(levels_of(Grid::e5m2, 8).max, 57344.0f);
  EXPECT_EQ(qparams(-3.0f, 896.0f, Grid::e4m3, 8, float32).scale, 2.0f);
  EXPECT_EQ(qparams(-28672.0f, 3.0f, Grid::e5m2, 8, float32).scale, 0.5f);
}

TEST(QParams, SymmetricGridsHaveZeroAtLevelZero) {
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::e4m3})
    EXPECT_EQ(qparams(-2.0f, 1.0f, grid, 8, float32).zero_point, 0.0f);
}

TEST(QParams, BoundsOfStoredScales) {
  EXPECT_EQ(least_scale(float16), 0x1p-14f);
  EXPECT_EQ(least_scale(bfloat16), 0x1p-116f);
  EXPECT_EQ(least_scale(float32), 0x1p-116f);
  EXPECT_EQ(greatest_scale(float16), 65504.0f);
  EXPECT_EQ(greatest_scale(bfloat16), 0x1.FEp127f);
  EXPECT_EQ(greatest_scale(float32), std::numeric_limits<float>::max());
  EXPECT_EQ(greatest_scale(e8m0_floor), 0x1p127f);
  EXPECT_EQ(greatest_scale(e4m3), 448.0f);
  EXPECT_EQ(greatest_scale(int6), 63.0f);
  EXPECT_EQ(greatest_scale(int8), 127.0f);
}

TEST(QParams, OffsetsAreExactOfFourBitsInFloat16) {
  EXPECT_TRUE(has_exact_offsets({-8.0f, 7.0f}, float16));
  EXPECT_FALSE(has_exact_offsets({-8.0f, 7.001f}, float16));
  EXPECT_FALSE(has_exact_offsets({-8.0f, 7.0f}, bfloat16));
}

TEST(QParams, SmallRangesContainZeroAsWell) {
  EXPECT_EQ(qparams(0.25f, 0.75f, Grid::asymmetric, 8, float32).scale, 0.75f / 255.0f);
}

TEST(QParams, ZeroPointsAreCountedInSteps) {
  const QParams half = qparams(-2.5f, 5.0f, Grid::asymmetric, 4, float32);
  EXPECT_EQ(half.scale, 0.5f);
  EXPECT_EQ(half.zero_point, -3.0f);
  // -128 + 100.49 is rounded down, and would not be a thousandth further on.
  EXPECT_EQ(qparams(-100.49f, 154.51f, Grid::asymmetric, 8, float32).zero_point, -28.0f);
}

TEST(QParams, NothingIsClippedWhereTheExtremeLandsOnAnEnd) {
  for (const ScaleCode code : {float32, bfloat16}) {
    for (const Grid grid : {Grid::narrow, Grid::e4m3, Grid::e5m2})
      EXPECT_TRUE(never_clips(grid, code));
    for (const Grid grid : {Grid::full, Grid::extreme, Grid::asymmetric})
      EXPECT_FALSE(never_clips(grid, code));
  }
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::e4m3})
    EXPECT_FALSE(never_clips(grid, float16));
}

TEST(QParams, FloatsOfFewBits) {
  for (const Grid grid : {Grid::e2m1, Grid::e2m3, Grid::e3m2, Grid::e4m3, Grid::e5m2})
    EXPECT_TRUE(is_float(grid));
  for (const Grid grid : {Grid::asymmetric, Grid::offset}) EXPECT_FALSE(is_float(grid));
  EXPECT_EQ(levels_of(Grid::e2m1, 4).max, 6.0f);
  EXPECT_EQ(levels_of(Grid::e2m3, 6).max, 7.5f);
  EXPECT_EQ(levels_of(Grid::e3m2, 6).max, 28.0f);
  EXPECT_EQ(qparams(-12.0f, 3.0f, Grid::e2m1, 4, float32).scale, 2.0f);
}

// (7c), worked out by hand: floor and even keep the exponent of the largest magnitude, less that of
// the largest level, and even rounds it first; ceil divides by the largest level and rounds up.
TEST(QParams, PowersOfTwoByTheRulesOfMx) {
  const struct {
    float absmax;
    float floor, even, ceil;
  } cases[] = {{4.0f, 1.0f, 1.0f, 1.0f},
               {6.0f, 1.0f, 1.0f, 1.0f},
               {6.01f, 1.0f, 1.0f, 2.0f},
               {6.99f, 1.0f, 1.0f, 2.0f},
               {7.0f, 1.0f, 2.0f, 2.0f},
               {8.0f, 2.0f, 2.0f, 2.0f},
               {3.0f, 0.5f, 0.5f, 0.5f},
               {3.01f, 0.5f, 0.5f, 1.0f},
               {1e-40f, 0x1p-116f, 0x1p-116f, 0x1p-116f}};
  for (const auto& one : cases) {
    EXPECT_EQ(qparams(-one.absmax, 0.0f, Grid::e2m1, 4, e8m0_floor).scale, one.floor) << one.absmax;
    EXPECT_EQ(qparams(-one.absmax, 0.0f, Grid::e2m1, 4, e8m0_even).scale, one.even) << one.absmax;
    EXPECT_EQ(qparams(0.0f, one.absmax, Grid::e2m1, 4, e8m0_ceil).scale, one.ceil) << one.absmax;
  }
  EXPECT_EQ(qparams(0.0f, 0.0f, Grid::e2m1, 4, e8m0_floor).scale, 1.0f);
  EXPECT_EQ(qparams(0.0f, 3.4e38f, Grid::e2m1, 4, e8m0_ceil).scale, 0x1p126f);
  EXPECT_EQ(qparams(0.0f, 448.0f, Grid::e4m3, 8, e8m0_floor).scale, 1.0f);
  EXPECT_EQ(qparams(0.0f, 480.0f, Grid::e4m3, 8, e8m0_even).scale, 1.0f);
  EXPECT_EQ(qparams(0.0f, 496.0f, Grid::e4m3, 8, e8m0_even).scale, 2.0f);
  EXPECT_EQ(qparams(0.0f, 7.0f, Grid::narrow, 4, e8m0_ceil).scale, 1.0f);
}

TEST(StoredScale, CodesWithoutASignTakeTheirLeastScaleForNegativeOnes) {
  for (const auto code : {ScaleCode::e8m0_floor, ScaleCode::e8m0_even, ScaleCode::e8m0_ceil,
                          ScaleCode::e4m3, ScaleCode::int6}) {
    EXPECT_EQ(stored_scale(-17.0f, code), least_scale(code));
    EXPECT_EQ(stored_scale(-17.0f, code, 0.5f), least_scale(code) * 0.5f);
    EXPECT_EQ(stored_scale(16.0f, code), 16.0f);
    EXPECT_EQ(stored_scale(-0.0f, code), 1.0f);
    EXPECT_EQ(stored_offset(3.0f, code), 0.0f);
    EXPECT_EQ(stored_offset(-2.0f, code), -2.0f);
  }
  for (const auto code :
       {ScaleCode::float32, ScaleCode::bfloat16, ScaleCode::float16, ScaleCode::int8}) {
    EXPECT_EQ(stored_scale(-16.0f, code), -16.0f);
    EXPECT_EQ(stored_offset(3.0f, code), 3.0f);
    EXPECT_EQ(stored_offset(-3.0f, code), -3.0f);
  }
}

TEST(QParams, CodesOfScales) {
  EXPECT_EQ(stored_scale(3.0f, e8m0_even), 4.0f);  // as near to 2
  EXPECT_EQ(stored_scale(2.999f, e8m0_even), 2.0f);
  EXPECT_EQ(stored_scale(1.5f, e8m0_floor), 2.0f);
  EXPECT_EQ(stored_scale(1.499f, e8m0_ceil), 1.0f);
  EXPECT_EQ(stored_scale(1.501f, e8m0_ceil), 2.0f);
  EXPECT_EQ(stored_scale(3.4e38f, e8m0_even), 0x1p127f);
  EXPECT_EQ(stored_scale(17.0f, e4m3), 16.0f);
  EXPECT_EQ(stored_scale(1e9f, e4m3), 448.0f);
  EXPECT_EQ(stored_scale(1e-9f, e4m3), 0x1p-9f);
  EXPECT_EQ(stored_scale(17.0f, e4m3, 0.5f), 16.0f);  // 34 is none, 32 and 36 are: a tie, to even
  EXPECT_EQ(stored_scale(2.5f, int6), 2.0f);
  EXPECT_EQ(stored_scale(0.1f, int6, 0.5f), 0.5f);
  EXPECT_EQ(stored_scale(100.0f, int6, 0.5f), 31.5f);
  EXPECT_EQ(stored_scale(-1000.0f, int8), -127.0f);
  EXPECT_EQ(stored_scale(0.0f, int8, 0.25f), 0.25f);
  EXPECT_EQ(stored_scale(NAN, e4m3, 0.25f), 0.25f);
}

TEST(QParams, OffsetsAreStoredAsScalesAreAndMayBeZero) {
  EXPECT_EQ(stored_offset(-2.6f, int6), -3.0f);
  EXPECT_EQ(stored_offset(-0.2f, int6), 0.0f);
  EXPECT_EQ(stored_offset(-100.0f, int6, 0.5f), -31.5f);
  EXPECT_EQ(stored_offset(1.0f / 3.0f, float16), static_cast<float>(c10::Half(1.0f / 3.0f)));
  EXPECT_EQ(stored_offset(NAN, float16), 0.0f);
  const QParams found = qparams(-3.0f, 12.0f, Grid::offset, 4, float32);
  EXPECT_EQ(found.scale, 1.0f);
  EXPECT_EQ(found.zero_point, -3.0f);
  EXPECT_EQ(qparams(3.0f, 15.0f, Grid::offset, 4, float32).zero_point, 0.0f);
}

TEST(QParams, UnstoredScalesOfZerosAreZero) {
  const QParams none = unstored_qparams(0.0f, 0.0f, Grid::narrow, levels_of(Grid::narrow, 4));
  EXPECT_EQ(none.scale, 0.0f);
  const QParams some = unstored_qparams(-2.0f, 13.0f, Grid::offset, levels_of(Grid::offset, 4));
  EXPECT_EQ(some.scale, 1.0f);
  EXPECT_EQ(some.zero_point, -2.0f);
  EXPECT_EQ(unstored_qparams(1.0f, 7.0f, Grid::narrow, levels_of(Grid::narrow, 4)).scale, 1.0f);
}

TEST(QParams, OnlyTheRuleThatRoundsUpNeverClips) {
  EXPECT_TRUE(never_clips(Grid::e2m1, e8m0_ceil));
  for (const ScaleCode code : {e8m0_floor, e8m0_even, e4m3, int6, int8})
    EXPECT_FALSE(never_clips(Grid::e2m1, code));
}

// By the widths of exponent and mantissa and by the largest code, as OCP MX and OCP FP8 have them.
TEST(QParams, LevelsOfFloatsAreThoseOfTheirFormats) {
  for (const auto& [grid, mantissa, bias, top] :
       {std::tuple(Grid::e2m1, 1, 1, 7), std::tuple(Grid::e2m3, 3, 1, 31),
        std::tuple(Grid::e3m2, 2, 3, 31), std::tuple(Grid::e4m3, 3, 7, 0x7e),
        std::tuple(Grid::e5m2, 2, 15, 0x7b)}) {
    const int fraction = top & ((1 << mantissa) - 1);
    const float largest = std::ldexp(1.0f + std::ldexp(static_cast<float>(fraction), -mantissa),
                                     (top >> mantissa) - bias);
    const Levels levels = levels_of(grid, 8);
    EXPECT_EQ(levels.max, largest);
    EXPECT_EQ(levels.min, -largest);
    EXPECT_EQ(levels.mantissa_bits, mantissa);
    EXPECT_EQ(levels.least_exponent, 1 - bias);
  }
}

TEST(QParams, TheFloorOfAPowerOfTwoIsExact) {
  const Levels levels = levels_of(Grid::e2m1, 4);
  EXPECT_EQ(power_of_two(8.0f, levels, e8m0_floor), 2.0f);
  EXPECT_EQ(power_of_two(std::nextafter(8.0f, 0.0f), levels, e8m0_floor), 1.0f);
  EXPECT_EQ(qparams_of(-3.0f, 1.0f, Grid::e2m1, levels, e8m0_floor).zero_point, 0.0f);
}

TEST(QParams, RangesBesideZeroReachToItBeforeTheyAreStored) {
  const Levels levels = levels_of(Grid::offset, 4);
  const QParams above = unstored_qparams(0.5f, 0.75f, Grid::offset, levels);
  const QParams below = unstored_qparams(-0.75f, -0.5f, Grid::offset, levels);
  EXPECT_EQ(above.scale, 0.375f / 7.5f);
  EXPECT_EQ(above.zero_point, 0.0f);
  EXPECT_EQ(below.scale, 0.375f / 7.5f);
  EXPECT_EQ(below.zero_point, -0.75f);
  EXPECT_EQ(unstored_qparams(-1.0f, 1.0f, Grid::full, levels_of(Grid::full, 4)).zero_point, 0.0f);
}

TEST(StoredScale, NegativeOnesAreMultiplesOfTheOuterOneAsWell) {
  EXPECT_EQ(stored_scale(-6.0f, int8, 2.0f), -6.0f);
  EXPECT_EQ(stored_offset(0.75f, int6), 0.0f);
}

}  // namespace
}  // namespace qat
