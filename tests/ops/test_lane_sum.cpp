#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "qat/ops/cpu/lane_sum.h"

namespace qat {
namespace {

// What the header says, written as loops: lane i % 32, then halves.
float reference(const std::vector<float>& terms) {
  float lanes[32] = {};
  for (size_t i = 0; i < terms.size(); ++i) lanes[i % 32] += terms[i];
  for (int half = 16; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

TEST(LaneSum, AddsInTheOrderThatTheHeaderSays) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (const size_t length : {0, 1, 7, 31, 32, 33, 64, 100, 4096, 4099}) {
    std::vector<float> terms(length);
    for (float& term : terms) term = normal(random);
    LaneSum<float> sum;
    sum.clear();
    sum.add(terms.data(), static_cast<int64_t>(length));
    EXPECT_EQ(sum.total(), reference(terms)) << length;
  }
}

TEST(LaneSum, PiecesOfAMultipleOfTheLanesDoNotMatter) {
  std::vector<float> terms(5000);
  for (size_t i = 0; i < terms.size(); ++i) terms[i] = 1.0f / static_cast<float>(i + 1);
  LaneSum<float> sum;
  sum.clear();
  for (int64_t at = 0; at < 5000; at += 2048)
    sum.add(terms.data() + at, std::min<int64_t>(2048, 5000 - at));
  EXPECT_EQ(sum.total(), reference(terms));
}

}  // namespace
}  // namespace qat
