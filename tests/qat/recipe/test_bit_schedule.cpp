#include <gtest/gtest.h>

#include <stdexcept>

#include "qat/recipe/bit_schedule.h"

namespace qat {
namespace {

Stage stage(double percent, std::optional<int> weight_bits, std::optional<int> input_bits = {}) {
  return {{true, percent}, weight_bits, input_bits, {}};
}

const std::vector<Stage> kLadder{stage(20, 8, kFloat), stage(50, 6, 8), stage(100, 4)};

TEST(BitSchedule, GoesDownTheLadder) {
  const BitSchedule schedule(kLadder, {true, 80}, 100);
  EXPECT_EQ(schedule.weight_bits(0, 4), 8);
  EXPECT_EQ(schedule.weight_bits(19, 4), 8);
  EXPECT_EQ(schedule.weight_bits(20, 4), 6);
  EXPECT_EQ(schedule.weight_bits(49, 4), 6);
  EXPECT_EQ(schedule.weight_bits(50, 4), 4);
  EXPECT_EQ(schedule.boundaries(), (std::vector<int64_t>{0, 20, 50}));
}

TEST(BitSchedule, ReachesTheLastRungOnTheLastStepAndStaysThere) {
  const BitSchedule schedule(kLadder, {true, 80}, 7);
  EXPECT_EQ(schedule.weight_bits(6, 4), 4);
  EXPECT_EQ(schedule.weight_bits(7, 4), 4);
  EXPECT_EQ(schedule.weight_bits(1000000, 4), 4);
}

TEST(BitSchedule, NeverGoesBelowALayersOwnWidth) {
  const BitSchedule schedule(kLadder, {true, 80}, 100);
  EXPECT_EQ(schedule.weight_bits(60, 8), 8);
  EXPECT_EQ(schedule.weight_bits(60, 2), 4);
}

TEST(BitSchedule, LaddersOfWeightsAndInputsAreApart) {
  const BitSchedule schedule(kLadder, {true, 80}, 100);
  EXPECT_EQ(schedule.input_bits(0, 8), kFloat);
  EXPECT_EQ(schedule.input_bits(20, 4), 8);
  EXPECT_EQ(schedule.input_bits(50, 4), 4);
}

TEST(BitSchedule, FloatDelaysTheStart) {
  const BitSchedule schedule({stage(50, kFloat), stage(100, std::nullopt)}, {true, 80}, 10);
  EXPECT_EQ(schedule.weight_bits(4, 4), kFloat);
  EXPECT_EQ(schedule.weight_bits(5, 4), 4);
}

TEST(BitSchedule, ObserversFreeze) {
  const BitSchedule schedule({}, {false, 30}, 100);
  EXPECT_TRUE(schedule.observing(29));
  EXPECT_FALSE(schedule.observing(30));
}

TEST(BitSchedule, ARunWithoutStepsIsAtItsEnd) {
  EXPECT_EQ(BitSchedule(kLadder, {true, 80}, 0).weight_bits(0, 4), 4);
  EXPECT_THROW(BitSchedule(kLadder, {true, 80}, -1), std::invalid_argument);
}

}  // namespace
}  // namespace qat
