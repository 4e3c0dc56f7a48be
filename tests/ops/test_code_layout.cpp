#include <gtest/gtest.h>

#include "qat/ops/encode.h"

namespace qat {
namespace {

TEST(CodeLayout, CountsShortLastSegments) {
  EXPECT_EQ(code_layout(make_layout(1, 70, 1, 32), 4).per_row, 16 + 16 + 3);
  EXPECT_EQ(code_layout(make_layout(1, 70, 1, 7), 4).per_row, 10 * 4);
  EXPECT_EQ(code_layout(make_layout(1, 70, 1, 32), 5).per_row, 70);
}

TEST(CodeLayout, OfOneBlockAndOfNone) {
  const CodeLayout one = code_layout(make_layout(2, 7, 1, -1), 4);
  EXPECT_EQ(one.per_block, 4);
  EXPECT_EQ(one.per_row, 4);
  EXPECT_EQ(code_layout(make_layout(4, 0, 1, -1), 4).per_row, 0);
}

}  // namespace
}  // namespace qat
