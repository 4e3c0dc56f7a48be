#include <gtest/gtest.h>

#include <vector>

#include "qat/ops/blocks.h"

namespace qat {
namespace {

TEST(Blocks, MinusOneTakesTheWholeAxis) {
  const BlockLayout tensor = make_layout(6, 10, -1, -1);
  EXPECT_EQ(tensor.grid_rows, 1);
  EXPECT_EQ(tensor.grid_cols, 1);
  const BlockLayout channel = make_layout(6, 10, 1, -1);
  EXPECT_EQ(channel.grid_rows, 6);
  EXPECT_EQ(channel.grid_cols, 1);
}

TEST(Blocks, TheLastBlockMayBeShort) {
  const BlockLayout layout = make_layout(5, 10, 2, 4);
  EXPECT_EQ(layout.grid_rows, 3);
  EXPECT_EQ(layout.grid_cols, 3);
  EXPECT_EQ(layout.segment_length(2), 2);
  EXPECT_EQ(layout.block_of(4, 2), 8);
}

TEST(Blocks, EverySegmentLiesInOneBlockAndTheyCoverTheTensorOnce) {
  const BlockLayout layout = make_layout(7, 13, 3, 5);
  std::vector<int> seen(7 * 13, 0);
  for (int64_t row = 0; row < layout.rows; ++row)
    for (int64_t col = 0; col < layout.grid_cols; ++col)
      for (int64_t i = 0; i < layout.segment_length(col); ++i) {
        const int64_t at = layout.offset_of(row, col) + i;
        ++seen[static_cast<size_t>(at)];
        EXPECT_EQ(layout.block_of(row, col), at / 13 / 3 * 3 + at % 13 / 5);
      }
  for (const int count : seen) EXPECT_EQ(count, 1);
}

TEST(Blocks, AnEmptyTensorHasNoSegments) {
  EXPECT_EQ(make_layout(0, 8, 1, 4).segments(), 0);
  EXPECT_EQ(make_layout(4, 0, 1, -1).segments(), 0);
}

TEST(Blocks, AreCountedOverBothAxes) { EXPECT_EQ(make_layout(6, 8, 2, 2).blocks(), 12); }

// Gradients of learned scales, which the frozen states hold, are added in this order.
TEST(Blocks, RowsAreAddedIn1024sAsTheNumericsSay) { EXPECT_EQ(kSumRows, 1024); }

}  // namespace
}  // namespace qat
