#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <locale>

#include "qat/ops/quantizer.h"

namespace qat {
namespace {

TEST(Quantizer, TextRoundTrips) {
  for (const auto* text :
       {"", "minmax int4 narrow 1x32 bfloat16", "fixed int8 asymmetric -1x-1 float32",
        "minmax int3 signed 1x-1 float16", "learned int2 full 128x128 bfloat16 0.03125",
        "minmax fp4_e2m1 1x32 e8m0_floor", "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1",
        "minmax int4 offset 1x32 int6*float16@1x256", "fixed fp8_e5m2 1x4096 float32",
        "learned fp6_e3m2 1x32 e8m0_even 1e-05"}) {
    EXPECT_EQ(Quantizer::parse(text).text(), text);
    EXPECT_EQ(Quantizer::parse(Quantizer::parse(text).text()), Quantizer::parse(text));
  }
}

TEST(Quantizer, TheFactorKeepsItsBits) {
  Quantizer quantizer = Quantizer::parse("learned int4 full 1x32 float32");
  EXPECT_EQ(quantizer.gradient_scale, 1.0);
  quantizer.gradient_scale = 1.0 / std::sqrt(224.0);
  EXPECT_EQ(Quantizer::parse(quantizer.text()).gradient_scale, quantizer.gradient_scale);
}

// A program's locale may group digits and write commas.
TEST(Quantizer, TextsAreTheSameInEveryLocale) {
  struct Grouping : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    char do_decimal_point() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::string text = "learned int4 full 1x4096 bfloat16 0.5";
  const std::locale before = std::locale::global(std::locale(std::locale(), new Grouping));
  const std::string written = Quantizer::parse(text).text();
  std::locale::global(before);
  EXPECT_EQ(written, text);
}

TEST(Quantizer, OtherTextsAreRefused) {
  for (const auto* text : {"int4",
                           "minmax int4 narrow 1x32",
                           "max int4 narrow 1x32 float32",
                           "minmax int1 narrow 1x32 float32",
                           "minmax int4 wide 1x32 float32",
                           "minmax int4 narrow 32 float32",
                           "minmax int4 narrow 0x1 float32",
                           "minmax int4 narrow 1x32 float64",
                           "minmax int4abc narrow 1x32 float32",
                           "minmax int4 narrow 1x32x9 float32",
                           "minmax int4 narrow 1x32 float32 1",
                           "learned int4 narrow 1x32 float32 1 2",
                           "minmax int4 narrow 1x32 float32 ",
                           " minmax int4 narrow 1x32 float32",
                           "minmax int8 fp8_e4m3 1x-1 float32",
                           "minmax fp4_e2m1 1x16 e4m3*float32",
                           "minmax fp4_e2m1 1x16 e4m3*int8@1x1",
                           "minmax fp4_e2m1 1x16 e4m3*float32@-1x24",
                           "minmax fp4_e2m1 1x-1 e4m3*float32@-1x64",
                           "minmax int4 narrow 4x16 int8*bfloat16@6x32",
                           "minmax int8 offset 1x32 float16",
                           "minmax int4 full 1x32 e8m0_floor",
                           "learned int4 narrow 1x32 float32 0,5"})
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
  const auto found = quantizer(x, {}, at::kFloat);
  at::Tensor with = gradient.clone(), without = gradient.clone();
  quantizer.backward_inplace(with, x, {}, found);
  quantizer.backward_inplace(without, x, {}, {});
  EXPECT_TRUE(at::equal(with, without));
  EXPECT_FALSE(at::equal(with, gradient));
}

}  // namespace
}  // namespace qat
