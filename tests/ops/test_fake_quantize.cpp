#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/fake_quantize.h"

namespace qat {
namespace {

at::Tensor scales(std::vector<float> values, at::IntArrayRef shape) {
  return at::tensor(values).view(shape);
}

TEST(FakeQuantize, RoundsToTheNearestLevelOfEachGroup) {
  const at::Tensor x = at::tensor({0.26f, 9.0f, -0.26f, 1.0f}).view({1, 4});
  const at::Tensor y = fake_quantize(x, scales({0.5f, 1.0f}, {1, 2}), std::nullopt, {1, 2}, -8, 7);
  EXPECT_TRUE(at::equal(y, at::tensor({0.5f, 3.5f, 0.0f, 1.0f}).view({1, 4})));
}

TEST(FakeQuantize, AppliesTheZeroPoint) {
  const at::Tensor x = at::tensor({-3.0f, 20.0f}).view({1, 2});
  const at::Tensor zero_point = at::full({1, 1}, 3, at::kChar);
  const at::Tensor y = fake_quantize(x, scales({1.0f}, {1, 1}), zero_point, {-1, -1}, -8, 7);
  EXPECT_TRUE(at::equal(y, at::tensor({-3.0f, 4.0f}).view({1, 2})));
}

TEST(FakeQuantize, AcceptsEveryGranularityAndDtype) {
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const std::vector<int64_t>& block :
         std::vector<std::vector<int64_t>>{{-1, -1}, {1, -1}, {1, 4}, {2, 4}, {3, 5}}) {
      const at::Tensor x = at::randn({6, 10}).to(dtype);
      const int64_t rows = block[0] == -1 ? 1 : (6 + block[0] - 1) / block[0];
      const int64_t cols = block[1] == -1 ? 1 : (10 + block[1] - 1) / block[1];
      const at::Tensor y =
          fake_quantize(x, at::full({rows, cols}, 0.25f), std::nullopt, block, -8, 7);
      const at::Tensor expected =
          (x.to(at::kFloat) / 0.25).round().clamp(-8, 7).mul(0.25).to(dtype);
      EXPECT_TRUE(at::equal(y, expected)) << dtype << " " << block;
    }
}

TEST(FakeQuantize, ReadsPermutedTensors) {
  const at::Tensor x = at::randn({8, 4}).t();
  const at::Tensor scale = at::rand({4, 1}) + 0.1;
  EXPECT_TRUE(at::equal(fake_quantize(x, scale, std::nullopt, {1, -1}, -8, 7),
                        fake_quantize(x.contiguous(), scale, std::nullopt, {1, -1}, -8, 7)));
}

TEST(FakeQuantize, AnEmptyTensorStaysEmpty) {
  EXPECT_EQ(
      fake_quantize(at::empty({0, 4}), at::empty({0, 1}), std::nullopt, {1, -1}, -8, 7).numel(), 0);
}

TEST(FakeQuantize, PassesGradientsInsideTheRangeOnly) {
  const at::Tensor x = at::tensor({0.3f, 9.0f}).view({1, 2}).requires_grad_(true);
  fake_quantize(x, at::ones({1, 1}), std::nullopt, {-1, -1}, -8, 7).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({1.0f, 0.0f}).view({1, 2})));
}

TEST(FakeQuantize, RefusesBadArgumentsWithASentence) {
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  const at::Tensor x = at::zeros({2, 4}), s = at::ones({2, 1});
  EXPECT_EQ(message([&] { fake_quantize(x.to(at::kDouble), s, std::nullopt, {1, -1}, -8, 7); }),
            "[fake_quantize] x must be float32, float16 or bfloat16, but is Double.");
  EXPECT_EQ(message([&] { fake_quantize(x, s, std::nullopt, {1, -1}, 7, -8); }),
            "[fake_quantize] quant_min must be below quant_max, both in [-128, 127], but they are "
            "7 and -8.");
  EXPECT_EQ(
      message([&] { fake_quantize(x, at::ones({1, 1}), std::nullopt, {1, -1}, -8, 7); }),
      "[fake_quantize] scale must have shape [2, 1], one entry per block of x, but has [1, 1].");
  EXPECT_EQ(
      message([&] { fake_quantize(x, s, std::nullopt, {0, -1}, -8, 7); }),
      "[fake_quantize] block sides must be positive, or -1 for the whole axis, but are [0, -1].");
}

}  // namespace
}  // namespace qat
