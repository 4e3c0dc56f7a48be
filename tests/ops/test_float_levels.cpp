#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

class FloatGrid : public testing::TestWithParam<const char*> {
 protected:
  std::string grid = GetParam();
  Levels levels = levels_of(parse_grid("test", grid), 8);
  std::string fixed = "fixed " + grid + " ";
};

TEST_P(FloatGrid, CodesAreTheLevelsOfWhatFakeQuantizeGives) {
  const at::Tensor x = at::randn({6, 40}) * 3.0;
  for (const auto& block : std::vector<std::vector<int64_t>>{{1, -1}, {-1, -1}, {4, 16}}) {
    const auto rows = (6 + block[0] - 1) / block[0], cols = (40 + block[1] - 1) / block[1];
    const at::Tensor scale = at::full({block[0] == -1 ? 1 : rows, block[1] == -1 ? 1 : cols}, 0.25);
    const std::string quantizer = text("fixed", 8, grid, block);
    const at::Tensor codes = quantize(x, quantizer, scale);
    EXPECT_EQ(codes.scalar_type(), code_dtype(parse_grid("test", grid)));
    const at::Tensor y = rounded(x, quantizer, scale);
    EXPECT_TRUE(at::equal(y, codes.to(at::kFloat) * 0.25));
    EXPECT_TRUE(at::equal(dequantize(codes, scale, std::nullopt, block, at::kFloat), y));
  }
}

TEST_P(FloatGrid, SaturatesAndShowsWhatIsNotFinite) {
  const at::Tensor x = at::tensor({1e30f, -1e30f, INFINITY, NAN}).reshape({1, 4});
  const at::Tensor y = rounded(x, fixed + "1x-1 float32", at::ones({1, 1}));
  EXPECT_EQ(y[0][0].item<float>(), levels.max);
  EXPECT_EQ(y[0][1].item<float>(), levels.min);
  EXPECT_TRUE(y[0][2].isnan().item<bool>() && y[0][3].isnan().item<bool>());
}

TEST_P(FloatGrid, LearnedScalesHaveTheGradientsOfNumericsFive) {
  const at::Tensor x = at::randn({4, 64}) * 3.0, grad = at::randn({4, 64});
  const at::Tensor scale = at::full({4, 2}, 2.0 / levels.max).requires_grad_();
  at::Tensor leaf = x.clone().requires_grad_();
  rounded(leaf, text("learned", 8, grid, {1, 32}), scale).backward(grad);
  // In float64 from the codes.
  const at::Tensor s = scale.detach().repeat_interleave(32, 1).to(at::kDouble);
  const at::Tensor u = x.to(at::kDouble) / s;
  const at::Tensor q =
      quantize(x, text("fixed", 8, grid, {1, 32}), scale.detach()).to(at::kFloat).to(at::kDouble);
  // Up to half a step beyond the last level, which still rounds to it.
  const double step = std::exp2(std::floor(std::log2(levels.max)) - levels.mantissa_bits);
  const at::Tensor inside = u.abs() < levels.max + step / 2;
  const at::Tensor expected =
      (at::where(inside, q - u, q) * grad.to(at::kDouble)).view({4, 2, 32}).sum(2);
  EXPECT_TRUE(at::allclose(scale.grad().to(at::kDouble), expected, 1e-4, 1e-3 * levels.max));
  EXPECT_TRUE(at::equal(leaf.grad().masked_select(inside), grad.masked_select(inside)));
}

// The casts of ATen are another implementation of the two formats that it has.
TEST_P(FloatGrid, EqualsTheCastsOfAten) {
  const auto dtype = code_dtype(parse_grid("test", grid));
  if (levels.max != 448.0f && levels.max != 57344.0f) return;
  const at::Tensor x = (at::randn({100, 64}) * levels.max / 3.0).clamp(levels.min, levels.max);
  EXPECT_TRUE(
      at::equal(rounded(x, fixed + "-1x-1 float32", at::ones({1, 1})), x.to(dtype).to(at::kFloat)));
}

INSTANTIATE_TEST_SUITE_P(Formats, FloatGrid,
                         testing::Values("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3",
                                         "fp8_e5m2"));

TEST(Dequantize, TheGradientOfACodesScaleIsTheirSum) {
  const at::Tensor codes = at::tensor({1, 2, 3, 4}, at::kChar).reshape({1, 4});
  const at::Tensor scale = at::ones({1, 2}).requires_grad_();
  dequantize(codes, scale, std::nullopt, {1, 2}, at::kFloat).sum().backward();
  EXPECT_TRUE(at::equal(scale.grad(), at::tensor({3.0f, 7.0f}).reshape({1, 2})));
}

}  // namespace
}  // namespace qat
