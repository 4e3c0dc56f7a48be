#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/quantizer.h"

namespace qat {
namespace {

TEST(Quantizer, TextRoundTrips) {
  for (const auto* text :
       {"", "minmax int4 narrow 1x32 bfloat16", "fixed int8 asymmetric -1x-1 float32",
        "minmax int3 signed 1x-1 float16", "learned int2 full 128x128 bfloat16 0.03125"})
    EXPECT_EQ(Quantizer::parse(text).text(), text);
}

TEST(Quantizer, TheFactorKeepsItsBits) {
  Quantizer quantizer = Quantizer::parse("learned int4 full 1x32 float32");
  EXPECT_EQ(quantizer.gradient_scale, 1.0);
  quantizer.gradient_scale = 1.0 / std::sqrt(224.0);
  EXPECT_EQ(Quantizer::parse(quantizer.text()).gradient_scale, quantizer.gradient_scale);
}

TEST(Quantizer, OtherTextsAreRefused) {
  for (const auto* text : {"int4", "minmax int4 narrow 1x32", "max int4 narrow 1x32 float32",
                           "minmax int1 narrow 1x32 float32", "minmax int4 wide 1x32 float32",
                           "minmax int4 narrow 32 float32", "minmax int4 narrow 0x1 float32",
                           "minmax int4 narrow 1x32 float64"})
    EXPECT_THROW(Quantizer::parse(text), c10::ValueError) << text;
}

TEST(Quantizer, OnlyANarrowRangeNeverClips) {
  EXPECT_TRUE(Quantizer::parse("minmax int4 narrow 1x32 bfloat16").never_clips());
  EXPECT_FALSE(Quantizer::parse("minmax int4 full 1x32 bfloat16").never_clips());
  EXPECT_FALSE(Quantizer::parse("minmax int4 narrow 1x32 float16").never_clips());
  EXPECT_FALSE(Quantizer::parse("fixed int4 narrow 1x32 bfloat16").never_clips());
}

TEST(Quantizer, InPlaceBackwardFindsTheRangeItIsNotGiven) {
  const Quantizer quantizer = Quantizer::parse("minmax int2 full 1x32 bfloat16");
  const at::Tensor x = at::randn({4, 64}), gradient = at::randn({4, 64});
  const auto found = quantizer(x, std::nullopt, std::nullopt, at::kFloat);
  at::Tensor with = gradient.clone(), without = gradient.clone();
  quantizer.backward_inplace(with, x, std::nullopt, std::nullopt, found);
  quantizer.backward_inplace(without, x, std::nullopt, std::nullopt, {});
  EXPECT_TRUE(at::equal(with, without));
  EXPECT_FALSE(at::equal(with, gradient));
}

}  // namespace
}  // namespace qat
