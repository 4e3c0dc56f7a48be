#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/quantize.h"
#include "tests/ops/quantizer_text.h"

// Scales of two levels: codes under outer scales.
namespace qat {
namespace {

const std::string kNvfp4 = "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1";
const std::string kQ4K = "minmax int4 offset 1x32 int6*float16@1x256";

at::Tensor cast_e4m3(const at::Tensor& x) { return x.to(at::kFloat8_e4m3fn).to(at::kFloat); }

// NVFP4 as ModelOpt and compressed-tensors define it: one float32 scale for the tensor, here a power
// of two, and E4M3 scales of sixteen elements each, here by ATen's own casts.
TEST(OuterScales, Nvfp4IsThatOfItsDefinition) {
  at::Tensor x = at::randn({32, 64}) * at::logspace(-2, 0, 32).view({32, 1});
  x.slice(0, 3, 4).slice(1, 0, 16).zero_();
  const auto [scale, zero] = choose_qparams(x, kNvfp4, "minmax");
  const at::Tensor raw = x.view({32, 4, 16}).abs().amax(2) / 6.0f;
  const at::Tensor outer = (raw.max() / 448.0f).log2().ceil().exp2();
  const at::Tensor inner = cast_e4m3((raw / outer).clamp(0x1p-9, 448.0));
  const at::Tensor expected = at::where(raw > 0, inner, at::ones({})) * outer;
  EXPECT_TRUE(at::equal(scale, expected));
  // And rounding by the found scales is rounding by given ones.
  const auto [y, found, none] = fake_quantize(x, kNvfp4);
  EXPECT_TRUE(at::equal(found, scale));
  EXPECT_TRUE(at::equal(y, rounded(x, "fixed fp4_e2m1 1x16 float32", scale)));
}

// Whoever divides by its reciprocal, or multiplies code, scale and outer scale in any order, in
// float32 or bfloat16, finds the same weight.
TEST(OuterScales, ThatOfE4m3IsThePowerOfTwoThatReachesTheLargestScale) {
  const std::string nvfp4 = "fixed fp4_e2m1 1x16 e4m3*float32@-1x-1";
  const auto outer_of = [&](float largest) {
    return outer_scales(at::tensor({largest, 0.5f * largest}).view({1, 2}), nvfp4).item<float>();
  };
  EXPECT_EQ(outer_of(448.0f), 1.0f);
  EXPECT_EQ(outer_of(448.001f), 2.0f);
  EXPECT_EQ(outer_of(447.0f), 1.0f);
  EXPECT_EQ(outer_of(224.0f), 0.5f);
  EXPECT_EQ(outer_of(1e-6f), 0x1p-28f);
  EXPECT_EQ(outer_of(0.0f), 1.0f);
  const at::Tensor x = at::randn({8, 64});
  const at::Tensor y = rounded(x, kNvfp4);
  EXPECT_TRUE(at::equal(y.to(at::kBFloat16).to(at::kFloat), y));
}

TEST(OuterScales, AGivenOuterScaleIsUsed) {
  const at::Tensor x = at::randn({4, 64}), outer = at::full({1, 1}, 0.01f);
  const at::Tensor scale = std::get<0>(choose_qparams(x, kNvfp4, "minmax", std::nullopt, outer));
  EXPECT_TRUE(
      at::equal(scale, cast_e4m3((x.view({4, 4, 16}).abs().amax(2) / 6.0f) / outer) * outer));
  EXPECT_TRUE(at::equal(std::get<1>(fake_quantize(x, kNvfp4, {}, {}, outer)), scale));
}

// Q4_K: eight blocks of 32 share d and dmin in float16, their scales and offsets have 6 bits.
TEST(OuterScales, ScalesAndOffsetsOfQ4KAreSixBitsTimesFloat16) {
  const at::Tensor x = at::randn({3, 512});
  const auto [scale, offset] = choose_qparams(x, kQ4K, "minmax");
  const auto check = [](const at::Tensor& stored, double least) {
    const at::Tensor blocks = stored.abs().view({3, 2, 8});
    const at::Tensor outer =
        (blocks.amax(2, true) / 63.0f).to(at::kHalf).to(at::kFloat);  // the largest has code 63
    const at::Tensor codes = blocks / outer;
    EXPECT_TRUE(at::allclose(codes, codes.round(), 0, 1e-3));
    EXPECT_GE(codes.min().item<double>(), least - 1e-3);
    EXPECT_LE(codes.max().item<double>(), 63.001);
  };
  check(scale, 1.0);
  check(offset, 0.0);
  EXPECT_TRUE((offset <= 0).all().item<bool>());
  const auto [y, found, found_offset] = fake_quantize(x, kQ4K);
  EXPECT_TRUE(at::equal(found, scale) && at::equal(found_offset, offset));
  const at::Tensor codes = quantize(x, kQ4K, scale, offset);
  EXPECT_EQ(codes.min().item<int>(), 0);
  EXPECT_EQ(codes.max().item<int>(), 15);
  EXPECT_TRUE(at::equal(dequantize(codes, scale, offset, {1, 32}, at::kFloat), y));
  // q d s and dmin m are exact in float32: their difference is rounded once, as llama.cpp does.
  const at::Tensor wide = codes.to(at::kDouble) * scale.repeat_interleave(32, 1).to(at::kDouble) +
                          offset.repeat_interleave(32, 1).to(at::kDouble);
  EXPECT_TRUE(at::equal(wide.to(at::kFloat), y));
}

TEST(OuterScales, RoundingAgainChangesNothing) {
  for (const std::string& text : {kNvfp4, kQ4K}) {
    const auto [scale, zero] = choose_qparams(at::randn({8, 512}), text, "minmax");
    const bool offsets = text == kQ4K;
    const auto [again, zero_again] =
        round_qparams(scale, text, offsets ? std::optional(zero) : std::nullopt);
    EXPECT_TRUE(at::equal(again, scale)) << text;
    EXPECT_TRUE(!offsets || at::equal(zero_again, zero));
  }
}

TEST(OuterScales, LearnedScalesAreRoundedToCodesAndReceiveGradients) {
  const at::Tensor x = at::randn({4, 64}).requires_grad_();
  const at::Tensor scale = (at::rand({4, 4}) + 0.1).requires_grad_();
  const std::string learned = "learned fp4_e2m1 1x16 e4m3*float32@-1x-1 0.5";
  const at::Tensor y = rounded(x, learned, scale);
  const at::Tensor stored = std::get<0>(round_qparams(scale.detach(), learned));
  EXPECT_FALSE(at::equal(stored, scale));
  EXPECT_TRUE(at::equal(y, rounded(x.detach(), "fixed fp4_e2m1 1x16 float32", stored)));
  y.square().sum().backward();
  EXPECT_GT(scale.grad().abs().min().item<float>(), 0.0f);
}

// (6) for offsets: what is clipped moves with the offset, what is not does not.
TEST(OuterScales, LearnedOffsetsReceiveTheGradientOfWhatIsClipped) {
  const at::Tensor x = at::tensor({-5.0f, 1.2f, 100.0f, 3.0f}).view({1, 4});
  const at::Tensor scale = at::ones({1, 1}).requires_grad_();
  const at::Tensor offset = at::full({1, 1}, -1.0f).requires_grad_();
  const at::Tensor y = rounded(x, "learned int4 offset 1x-1 float32", scale, offset);
  EXPECT_TRUE(at::equal(y, at::tensor({-1.0f, 1.0f, 14.0f, 3.0f}).view({1, 4})));
  y.sum().backward();
  EXPECT_EQ(offset.grad().item<float>(), 2.0f);
  EXPECT_NEAR(scale.grad().item<float>(), 0.0f + (2.0f - 2.2f) + 15.0f + 0.0f, 1e-5);
}

TEST(OuterScales, SidesThatBlocksDoNotFillAreRefused) {
  EXPECT_THROW(
      choose_qparams(at::randn({2, 64}), "minmax int4 full 1x48 int6*float16@1x256", "minmax"),
      c10::ValueError);
}

}  // namespace
}  // namespace qat
