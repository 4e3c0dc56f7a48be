#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <tuple>

#include "qat/ops/affine.h"
#include "qat/ops/qparams.h"

namespace qat {
namespace {

// kvalues_iq4nl of ggml-common.h.
constexpr std::array<int, 16> kIq4{-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

const Levels kLevels = levels_of(Grid::iq4_nl, 4);

// The nearest, the upper one halfway, searched in float64.
float nearest(double u) {
  int best = 0;
  for (int code = 1; code < 16; ++code)
    if (std::abs(kIq4[code] - u) <= std::abs(kIq4[best] - u)) best = code;
  return static_cast<float>(kIq4[best]);
}

TEST(TableLevels, EveryHalfPrecisionNumberGoesToTheNearest) {
  for (int pattern = 0; pattern < 0x10000; ++pattern) {
    const float wide = float_of(pattern << 16);
    if (std::isfinite(wide)) {
      EXPECT_EQ(nearest_level(wide, kLevels), nearest(std::clamp(wide, -200.0f, 200.0f))) << wide;
    }
    const float half = c10::Half(static_cast<uint16_t>(pattern), c10::Half::from_bits());
    if (std::isfinite(half)) {
      EXPECT_EQ(nearest_level(half, kLevels), nearest(std::clamp(half, -200.0f, 200.0f))) << half;
    }
  }
}

TEST(TableLevels, EveryBorderAndItsNeighboursInFloat32) {
  for (int code = 0; code < 15; ++code) {
    const float border = static_cast<float>(kIq4[code] + kIq4[code + 1]) / 2.0f;
    for (const float u : {border, std::nextafter(border, -1e9f), std::nextafter(border, 1e9f)})
      EXPECT_EQ(nearest_level(u, kLevels), nearest(u)) << u;
  }
}

TEST(TableLevels, LevelsStayThemselves) {
  for (const int level : kIq4)
    EXPECT_EQ(nearest_level(static_cast<float>(level), kLevels), static_cast<float>(level));
}

TEST(TableLevels, SaturateAndSendNanToTheLowest) {
  EXPECT_EQ(nearest_level(FLT_MAX, kLevels), 113.0f);
  EXPECT_EQ(nearest_level(-INFINITY, kLevels), -127.0f);
  EXPECT_EQ(nearest_level(NAN, kLevels), -127.0f);
}

TEST(TableLevels, GradientsPassUntilHalfAGapBeyondTheEnds) {
  const TableLevels levels = table_levels(kLevels);
  for (const auto& [edge, outwards, end] :
       {std::tuple(125.0f, INFINITY, 113.0f), std::tuple(-138.5f, -INFINITY, -127.0f)}) {
    const float outside = std::nextafter(edge, outwards);
    const auto gradient = [&](float u) {
      return affine::straight_through(3.0f, u * 0.5f, 2.0f, 0.0f, levels);
    };
    EXPECT_EQ(gradient(edge), 3.0f);
    EXPECT_EQ(gradient(outside), 0.0f);
    EXPECT_EQ(affine::scale_gradient(2.0f, edge, 1.0f, 0.0f, levels), 2.0f * (end - edge));
    EXPECT_EQ(affine::scale_gradient(2.0f, outside, 1.0f, 0.0f, levels), 2.0f * end);
  }
  EXPECT_EQ(affine::straight_through(3.0f, NAN, 1.0f, 0.0f, levels), 0.0f);
  EXPECT_EQ(affine::straight_through(3.0f, INFINITY, 1.0f, 0.0f, levels), 0.0f);
  EXPECT_EQ(affine::scale_gradient(2.0f, NAN, 1.0f, 0.0f, levels), 0.0f);
  EXPECT_EQ(affine::scale_gradient(2.0f, 6.0f, 1.0f, 0.0f, levels), 2.0f * (1.0f - 6.0f));
}

TEST(TableLevels, TheElementOfLargestMagnitudeHasTheFirstLevel) {
  for (const float sign : {1.0f, -1.0f}) {
    const float low = sign > 0.0f ? -3.0f : -254.0f, high = sign > 0.0f ? 254.0f : 3.0f;
    const QParams found = qparams_of(low, high, Grid::iq4_nl, kLevels, ScaleCode::float32);
    EXPECT_EQ(found.scale, -2.0f * sign);
    EXPECT_EQ(found.zero_point, 0.0f);
  }
}

}  // namespace
}  // namespace qat
