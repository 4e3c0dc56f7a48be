#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/float8.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

class Float8 : public testing::TestWithParam<std::pair<int64_t, at::ScalarType>> {
 protected:
  int64_t top = GetParam().first;
  at::ScalarType dtype = GetParam().second;
};

// The casts of ATen are another implementation of both formats.
TEST_P(Float8, CodesAreAtensOfTheScaledNumbers) {
  const at::Tensor x = at::randn({6, 40}) * 3.0;
  for (const auto& block : std::vector<std::vector<int64_t>>{{1, -1}, {-1, -1}, {4, 16}}) {
    const auto rows = (6 + block[0] - 1) / block[0], cols = (40 + block[1] - 1) / block[1];
    const at::Tensor scale = at::full({block[0] == -1 ? 1 : rows, block[1] == -1 ? 1 : cols}, 0.25);
    const at::Tensor codes = float8_codes(x, scale, block, {-float(top), float(top)});
    EXPECT_TRUE(at::equal(codes.to(at::kFloat), (x * 4.0).to(dtype).to(at::kFloat)));
    const at::Tensor y = fake_quantize(x, scale, std::nullopt, block, -top, top);
    EXPECT_TRUE(at::equal(y, codes.to(at::kFloat) * 0.25));
    EXPECT_TRUE(at::equal(float8_dequantize(codes, scale, block, at::kFloat), y));
  }
}

TEST_P(Float8, SaturatesAndShowsWhatIsNotFinite) {
  const at::Tensor x = at::tensor({1e30f, -1e30f, INFINITY, NAN}).reshape({1, 4});
  const at::Tensor y = fake_quantize(x, at::ones({1, 1}), std::nullopt, {1, -1}, -top, top);
  EXPECT_EQ(y[0][0].item<float>(), float(top));
  EXPECT_EQ(y[0][1].item<float>(), -float(top));
  EXPECT_TRUE(y[0][2].isnan().item<bool>() && y[0][3].isnan().item<bool>());
}

TEST_P(Float8, GradientsPassWhereTheNumberIsNotClipped) {
  const float edge = float(top);
  const at::Tensor x = at::tensor({0.5f, edge, 1.5f * edge, -1.5f * edge}).reshape({1, 4});
  const at::Tensor grad = at::ones({1, 4});
  const at::Tensor passed =
      fake_quantize_backward(grad, x, at::ones({1, 1}), std::nullopt, {1, -1}, -top, top);
  EXPECT_TRUE(at::equal(passed, at::tensor({1.0f, 1.0f, 0.0f, 0.0f}).reshape({1, 4})));
  at::Tensor in_place = grad.clone();
  fake_quantize_backward_inplace(in_place, x, at::ones({1, 1}), std::nullopt, {1, -1}, -top, top);
  EXPECT_TRUE(at::equal(in_place, passed));
}

INSTANTIATE_TEST_SUITE_P(Formats, Float8,
                         testing::Values(std::pair(int64_t{448}, at::kFloat8_e4m3fn),
                                         std::pair(int64_t{57344}, at::kFloat8_e5m2)));

TEST(Float8, TheGradientOfACodesScaleIsTheirSum) {
  const at::Tensor codes = at::tensor({1, 2, 3, 4}, at::kChar).reshape({1, 4});
  const at::Tensor scale = at::ones({1, 2}).requires_grad_();
  dequantize(codes, scale, std::nullopt, {1, 2}, at::kFloat).sum().backward();
  EXPECT_TRUE(at::equal(scale.grad(), at::tensor({3.0f, 7.0f}).reshape({1, 2})));
}

}  // namespace
}  // namespace qat
