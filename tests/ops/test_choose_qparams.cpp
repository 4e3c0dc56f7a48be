#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/candidates.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

double squared_error(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point) {
  return (rounded(x, text("fixed", 4, "asymmetric", {1, -1}), scale, zero_point) - x)
      .to(at::kDouble)
      .square()
      .sum()
      .item<double>();
}

TEST(ChooseQParams, IgnoresWhatIsNotFinite) {
  const at::Tensor x = at::tensor({1.0f, -7.0f, NAN, INFINITY, -INFINITY}).view({1, 5});
  const auto [scale, zero_point] =
      choose_qparams(x, text("minmax", 4, "narrow", {1, -1}, at::kFloat), "minmax");
  EXPECT_EQ(scale.item<float>(), 1.0f);
}

TEST(ChooseQParams, ABlockWithoutFiniteElementsCountsAsZeros) {
  const at::Tensor x = at::full({1, 40}, NAN);
  for (const auto* method : {"minmax", "mse"})
    EXPECT_EQ(std::get<0>(choose_qparams(x, text("minmax", 4, "full", {1, -1}, at::kFloat), method))
                  .item<float>(),
              1.0f);
}

TEST(ChooseQParams, TheSearchFindsTheLeastErrorOfItsCandidates) {
  const at::Tensor x = at::randn({16, 128});
  const auto [scale, zero_point] =
      choose_qparams(x, text("minmax", 4, "full", {1, -1}, at::kFloat), "mse");
  for (int64_t row = 0; row < 16; ++row) {
    const at::Tensor one = x.slice(0, row, row + 1);
    const float widest = one.abs().max().item<float>() / 7.5f;
    double least = 1e30;
    for (int step = 0; step < kSearchSteps; ++step) {
      const at::Tensor s = at::full({1, 1}, widest * search_fraction(step));
      least = std::min(least, squared_error(one, s, at::zeros({1, 1}, at::kChar)));
    }
    EXPECT_NEAR(squared_error(one, scale.slice(0, row, row + 1), zero_point.slice(0, row, row + 1)),
                least,
                least * 1e-5);  // sums of 128 squares in another order
  }
}

TEST(ChooseQParams, TheSearchIsThatOfTheFiniteElements) {
  // Of one value, whose range alone says little.
  const at::Tensor x = at::full({1, 32}, 0.37f);
  at::Tensor spoiled = at::full({1, 33}, 0.37f);
  spoiled[0][7] = NAN;
  for (const auto* grid : {"narrow", "full", "signed", "asymmetric"}) {
    const std::string quantizer = text("minmax", 3, grid, {1, -1});
    EXPECT_TRUE(at::equal(std::get<0>(choose_qparams(x, quantizer, "mse")),
                          std::get<0>(choose_qparams(spoiled, quantizer, "mse"))))
        << grid;
  }
}

TEST(ChooseQParams, RoundsToTheScaleDtype) {
  const auto [scale, zero_point] =
      choose_qparams(at::randn({8, 64}), text("minmax", 4, "narrow", {1, 32}, at::kHalf), "mse");
  EXPECT_TRUE(at::equal(scale, scale.to(at::kHalf).to(at::kFloat)));
}

TEST(RoundQParams, RoundsZeroPointsToLevels) {
  const at::Tensor zero_point = at::tensor({0.5f, 1.5f, -9.0f, 70.0f}).view({2, 2});
  const auto [scale, rounded] = round_qparams(
      at::ones({2, 2}), text("learned", 4, "asymmetric", {1, 1}, at::kFloat), zero_point);
  EXPECT_TRUE(
      at::equal(rounded.to(at::kFloat), at::tensor({0.0f, 2.0f, -8.0f, 7.0f}).view({2, 2})));
}

}  // namespace
}  // namespace qat
