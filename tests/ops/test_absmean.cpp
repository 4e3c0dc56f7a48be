#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/absmean.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

TEST(Absmean, IsTheMeanMagnitudeOfEachBlock) {
  const at::Tensor x = at::tensor({1.0f, -3.0f, 0.0f, 4.0f, -8.0f, 2.0f}).view({2, 3});
  EXPECT_TRUE(at::equal(absmean(x, {1, 2}), at::tensor({2.0f, 0.0f, 6.0f, 2.0f}).view({2, 2})));
  EXPECT_EQ(absmean(x, {-1, -1}).item<float>(), 3.0f);
}

TEST(Absmean, CountsFiniteElementsAlone) {
  const at::Tensor x = at::tensor({NAN, -3.0f, INFINITY, 1.0f}).view({1, 4});
  EXPECT_EQ(absmean(x, {1, -1}).item<float>(), 2.0f);
  EXPECT_EQ(absmean(at::full({1, 4}, NAN), {1, -1}).item<float>(), 0.0f);
}

TEST(Absmean, TheSumIsOfHalves) {
  // In order, or in pairs of neighbours, each 1 would vanish beside 2^24.
  const at::Tensor x = at::tensor({16777216.0f, 1.0f, 0.0f, 1.0f}).view({1, 4});
  EXPECT_EQ(absmean(x, {1, -1}).item<float>(), 16777218.0f / 4.0f);
}

TEST(Absmean, TakesAnyShapeAndNoElements) {
  EXPECT_EQ(absmean(at::scalar_tensor(-2.0f), {-1, -1}).item<float>(), 2.0f);
  EXPECT_EQ(absmean(at::empty({0, 8}), {1, 4}).sizes(), at::IntArrayRef({0, 2}));
  EXPECT_EQ(absmean(at::ones({2, 3, 8}), {1, 4}).sizes(), at::IntArrayRef({6, 2}));
}

TEST(Absmean, ABlockOfZerosHasTheScaleOfOne) {
  const auto [scale, zero_point] =
      choose_qparams(at::zeros({1, 8}), "absmean int2 narrow 1x-1 float16", "absmean");
  EXPECT_EQ(scale.item<float>(), 1.0f);
}

TEST(Absmean, TheForwardReturnsTheScaleThatItFound) {
  const at::Tensor x = at::randn({8, 64});
  const char* quantizer = "absmean int2 narrow 1x32 float16";
  const auto [y, scale, zero_point] = fake_quantize(x, quantizer);
  EXPECT_TRUE(at::equal(scale, std::get<0>(choose_qparams(x, quantizer, "absmean"))));
  EXPECT_TRUE(at::equal(y, rounded(x, "fixed int2 narrow 1x32 float16", scale)));
}

}  // namespace
}  // namespace qat
