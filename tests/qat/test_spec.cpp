#include <gtest/gtest.h>

#include "qat/spec.h"

namespace qat {
namespace {

TEST(Spec, GranularitiesBecomeBlockShapes) {
  QuantSpec spec;
  spec.granularity = Granularity::tensor;
  EXPECT_EQ(block_shape(spec), (std::array<int64_t, 2>{-1, -1}));
  spec.granularity = Granularity::token;
  EXPECT_EQ(block_shape(spec), (std::array<int64_t, 2>{1, -1}));
  spec.granularity = Granularity::group;
  spec.group_size = 32;
  EXPECT_EQ(block_shape(spec), (std::array<int64_t, 2>{1, 32}));
  EXPECT_EQ(block_count(spec, 4, 128), 16);
}

TEST(Spec, DescribesItselfInOneLine) {
  QuantSpec spec;
  spec.bits = 4;
  spec.granularity = Granularity::group;
  spec.group_size = 128;
  spec.range = Range::learned;
  EXPECT_EQ(describe(spec), "int4 group 128 narrow, learned scale in bfloat16");
}

TEST(Spec, RefusesUnknownDtypes) { EXPECT_THROW(parse_dtype("float64"), std::invalid_argument); }

}  // namespace
}  // namespace qat
