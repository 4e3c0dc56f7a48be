#include <ATen/ATen.h>
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

TEST(Spec, NamesOfItsPartsAreReadAgain) {
  for (const auto* name : {"tensor", "channel", "token", "group", "block", "head"})
    EXPECT_STREQ(name_of(parse_granularity(name)), name);
  for (const auto* name : {"minmax", "moving_average", "percentile", "mse", "entropy"})
    EXPECT_STREQ(name_of(parse_observer(name)), name);
  EXPECT_STREQ(name_of(at::kHalf), "float16");
  EXPECT_STREQ(name_of(at::kDouble), "Double");
  EXPECT_THROW(parse_granularity("row"), std::invalid_argument);
  EXPECT_THROW(parse_observer("median"), std::invalid_argument);
}

TEST(Spec, DescribesBlocksAndObservers) {
  QuantSpec spec;
  spec.grid = Grid::e4m3;
  spec.granularity = Granularity::block;
  spec.block = {128, 128};
  EXPECT_EQ(describe(spec), "fp8_e4m3 block 128x128, minmax scale in bfloat16");
  EXPECT_EQ(block_shape(spec), (std::array<int64_t, 2>{128, 128}));
  QuantSpec input;
  input.granularity = Granularity::tensor;
  input.observer.kind = ObserverKind::entropy;
  EXPECT_EQ(describe(input), "int8 tensor narrow, entropy scale in bfloat16");
}

}  // namespace
}  // namespace qat
