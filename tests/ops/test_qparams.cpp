#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qat/ops/qparams.h"

namespace qat {
namespace {

using c10::ScalarType;

TEST(QParams, RangesOfTheGrids) {
  EXPECT_EQ(range_of(Grid::narrow, 4).min, -7.0f);
  EXPECT_EQ(range_of(Grid::full, 4).min, -8.0f);
  EXPECT_EQ(range_of(Grid::asymmetric, 8).min, -128.0f);
  EXPECT_EQ(range_of(Grid::narrow, 8).max, 127.0f);
  EXPECT_EQ(range_of(Grid::extreme, 2).max, 1.0f);
}

TEST(QParams, SymmetricGridsDivideTheLargestMagnitude) {
  EXPECT_EQ(qparams_of(-3.5f, 7.0f, Grid::narrow, 4, ScalarType::Float).scale, 1.0f);
  EXPECT_EQ(qparams_of(-7.5f, 3.0f, Grid::full, 4, ScalarType::Float).scale, 1.0f);
}

TEST(QParams, SignedGridPutsTheExtremeOnTheLowestLevel) {
  EXPECT_EQ(qparams_of(-8.0f, 3.0f, Grid::extreme, 4, ScalarType::Float).scale, 1.0f);
  EXPECT_EQ(qparams_of(-3.0f, 8.0f, Grid::extreme, 4, ScalarType::Float).scale, -1.0f);
  EXPECT_EQ(qparams_of(-8.0f, 8.0f, Grid::extreme, 4, ScalarType::Float).scale, 1.0f);
}

TEST(QParams, AsymmetricRangeContainsZero) {
  const QParams positive = qparams_of(5.0f, 15.0f, Grid::asymmetric, 4, ScalarType::Float);
  EXPECT_EQ(positive.scale, 1.0f);
  EXPECT_EQ(positive.zero_point, -8.0f);
  const QParams both = qparams_of(-5.0f, 10.0f, Grid::asymmetric, 4, ScalarType::Float);
  EXPECT_EQ(both.scale, 1.0f);
  EXPECT_EQ(both.zero_point, -3.0f);
}

TEST(QParams, TheScaleIsRoundedToItsStoredDtype) {
  const float scale = qparams_of(-1.0f, 1.0f, Grid::narrow, 4, ScalarType::BFloat16).scale;
  EXPECT_EQ(scale, static_cast<float>(c10::BFloat16(1.0f / 7.0f)));
  EXPECT_NE(scale, 1.0f / 7.0f);
}

TEST(QParams, AnAllZeroBlockHasScaleOne) {
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
    EXPECT_EQ(qparams_of(0.0f, 0.0f, grid, 4, ScalarType::Half).scale, 1.0f);
}

TEST(QParams, TinyAndHugeScalesStayInvertible) {
  EXPECT_EQ(stored_scale(1e-30f, ScalarType::Half), 6.103515625e-05f);
  EXPECT_EQ(stored_scale(-1e-30f, ScalarType::Half), -6.103515625e-05f);
  EXPECT_EQ(stored_scale(1e30f, ScalarType::Half), 65504.0f);
  EXPECT_TRUE(std::isfinite(1.0f / stored_scale(1e-44f, ScalarType::Float)));
  EXPECT_TRUE(std::isfinite(stored_scale(3.4e38f, ScalarType::BFloat16)));
  EXPECT_EQ(stored_scale(NAN, ScalarType::Float), 1.0f);
}

// (7b), over every float16 scale that a checkpoint may hold: what Q4_1 stores is exact.
TEST(QParams, Float16ScalesOfAsymmetricFourBitGridsTimesALevelAreFloat16) {
  for (uint16_t pattern = 0x0400; pattern < 0x6C00; ++pattern) {  // 2^-14 to 4096
    const float exact = c10::Half(pattern, c10::Half::from_bits());
    const float scale = stored_scale(exact, ScalarType::Half, /*exact_offsets=*/true);
    EXPECT_NEAR(scale, exact, exact * 0x1p-7f);
    for (int level = 0; level < 16; ++level) {
      const float product = scale * static_cast<float>(level);
      EXPECT_EQ(static_cast<float>(c10::Half(product)), product) << exact << " * " << level;
    }
  }
  EXPECT_EQ(stored_scale(1e30f, ScalarType::Half, true), 65024.0f);
  EXPECT_EQ(round_to_7_bits(129.0f), 128.0f);  // ties to even
  EXPECT_EQ(round_to_7_bits(131.0f), 132.0f);
  const QParams found = qparams_of(-1.0f, 2.1f, Grid::asymmetric, 4, ScalarType::Half);
  EXPECT_EQ(found.scale, round_to_7_bits(3.1f / 15.0f));
  const QParams eight = qparams_of(-1.0f, 2.1f, Grid::asymmetric, 8, ScalarType::Half);
  EXPECT_EQ(eight.scale, static_cast<float>(c10::Half(3.1f / 255.0f)));
}

TEST(QParams, TheWidestRangeDoesNotOverflow) {
  const QParams widest = qparams_of(-3.4e38f, 3.4e38f, Grid::asymmetric, 8, ScalarType::Float);
  EXPECT_TRUE(std::isfinite(widest.scale));
  EXPECT_NEAR(widest.scale, 3.4e38 * 2.0 / 255.0, 1e31);
}

TEST(QParams, Float8Grids) {
  for (const Grid grid : {Grid::e4m3, Grid::e5m2}) EXPECT_TRUE(is_float8(grid));
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
    EXPECT_FALSE(is_float8(grid));
  EXPECT_EQ(range_of(Grid::e4m3, 8).min, -448.0f);
  EXPECT_EQ(range_of(Grid::e4m3, 8).max, 448.0f);
  EXPECT_EQ(range_of(Grid::e5m2, 8).min, -57344.0f);
  EXPECT_EQ(range_of(Grid::e5m2, 8).max, 57344.0f);
  EXPECT_TRUE(is_float8(range_of(Grid::e4m3, 8)));
  EXPECT_TRUE(is_float8(QuantRange{-127.01f, 127.01f}));
  EXPECT_FALSE(is_float8(range_of(Grid::full, 8)));
  EXPECT_FALSE(is_float8(range_of(Grid::full, 4)));
  EXPECT_EQ(qparams_of(-3.0f, 896.0f, Grid::e4m3, 8, ScalarType::Float).scale, 2.0f);
  EXPECT_EQ(qparams_of(-28672.0f, 3.0f, Grid::e5m2, 8, ScalarType::Float).scale, 0.5f);
}

TEST(QParams, SymmetricGridsHaveZeroAtLevelZero) {
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::e4m3})
    EXPECT_EQ(qparams_of(-2.0f, 1.0f, grid, 8, ScalarType::Float).zero_point, 0.0f);
}

TEST(QParams, BoundsOfStoredScales) {
  EXPECT_EQ(least_scale(ScalarType::Half), 0x1p-14f);
  EXPECT_EQ(least_scale(ScalarType::BFloat16), 0x1p-116f);
  EXPECT_EQ(least_scale(ScalarType::Float), 0x1p-116f);
  EXPECT_EQ(greatest_scale(ScalarType::Half), 65504.0f);
  EXPECT_EQ(greatest_scale(ScalarType::BFloat16), 0x1.FEp127f);
  EXPECT_EQ(greatest_scale(ScalarType::Float), std::numeric_limits<float>::max());
}

TEST(QParams, OffsetsAreExactOfFourBitsInFloat16) {
  EXPECT_TRUE(has_exact_offsets({-8.0f, 7.0f}, ScalarType::Half));
  EXPECT_FALSE(has_exact_offsets({-8.0f, 7.001f}, ScalarType::Half));
  EXPECT_FALSE(has_exact_offsets({-8.0f, 7.0f}, ScalarType::BFloat16));
}

TEST(QParams, SmallRangesContainZeroAsWell) {
  EXPECT_EQ(qparams_of(0.25f, 0.75f, Grid::asymmetric, 8, ScalarType::Float).scale, 0.75f / 255.0f);
}

TEST(QParams, ZeroPointsAreCountedInSteps) {
  const QParams half = qparams_of(-2.5f, 5.0f, Grid::asymmetric, 4, ScalarType::Float);
  EXPECT_EQ(half.scale, 0.5f);
  EXPECT_EQ(half.zero_point, -3.0f);
  // -128 + 100.49 is rounded down, and would not be a thousandth further on.
  EXPECT_EQ(qparams_of(-100.49f, 154.51f, Grid::asymmetric, 8, ScalarType::Float).zero_point,
            -28.0f);
}

TEST(QParams, NothingIsClippedWhereTheExtremeLandsOnAnEnd) {
  for (const ScalarType dtype : {ScalarType::Float, ScalarType::BFloat16}) {
    for (const Grid grid : {Grid::narrow, Grid::e4m3, Grid::e5m2})
      EXPECT_TRUE(never_clips(grid, dtype));
    for (const Grid grid : {Grid::full, Grid::extreme, Grid::asymmetric})
      EXPECT_FALSE(never_clips(grid, dtype));
  }
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::e4m3})
    EXPECT_FALSE(never_clips(grid, ScalarType::Half));
}

}  // namespace
}  // namespace qat
