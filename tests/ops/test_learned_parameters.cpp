#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

TEST(LearnedParameters, HandComputedGradients) {
  // u = x / 0.5 = 0.6, 20, -20: inside, above, below the int4 range.
  const at::Tensor x = at::tensor({0.3f, 10.0f, -10.0f}).view({1, 3}).requires_grad_(true);
  const at::Tensor scale = at::full({1, 1}, 0.5f).requires_grad_(true);
  const at::Tensor zero_point = at::zeros({1, 1}).requires_grad_(true);
  rounded(x, text("learned", 4, "asymmetric", {-1, -1}, at::kFloat, 1.0), scale, zero_point)
      .sum()
      .backward();
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({1.0f, 0.0f, 0.0f}).view({1, 3})));
  EXPECT_NEAR(scale.grad().item<float>(), (1.0f - 0.6f) + 7.0f - 8.0f, 1e-6);
  EXPECT_EQ(zero_point.grad().item<float>(), -1.0f);
}

TEST(LearnedParameters, TheGradientScaleMultiplies) {
  const at::Tensor x = at::randn({4, 64});
  const auto gradient = [&](double factor) {
    const at::Tensor scale = at::full({4, 2}, 0.1f).requires_grad_(true);
    rounded(x, text("learned", 4, "full", {1, 32}, at::kFloat, factor), scale)
        .square()
        .sum()
        .backward();
    return scale.grad();
  };
  EXPECT_TRUE(at::equal(gradient(0.5), gradient(1.0) * 0.5));
}

TEST(LearnedParameters, UsesTheParametersAsTheyAreStored) {
  const at::Tensor x = at::randn({4, 64}), scale = at::rand({4, 2}) + 0.05,
                   zero_point = at::randn({4, 2}) * 3;
  const auto [s, z] =
      round_qparams(scale, text("learned", 4, "asymmetric", {1, 1}, at::kBFloat16), zero_point);
  EXPECT_TRUE(at::equal(
      rounded(x, text("learned", 4, "asymmetric", {1, 32}, at::kBFloat16, 1.0), scale, zero_point),
      rounded(x, text("fixed", 4, "asymmetric", {1, 32}), s, z)));
}

TEST(LearnedParameters, SumsInTheSameOrderWithAnyNumberOfThreads) {
  const at::Tensor x = at::randn({300, 130});
  const auto gradient = [&](int threads) {
    at::set_num_threads(threads);
    const at::Tensor scale = at::full({1, 1}, 0.1f).requires_grad_(true);
    rounded(x, text("learned", 4, "full", {-1, -1}, at::kFloat, 1.0), scale)
        .square()
        .sum()
        .backward();
    return scale.grad();
  };
  const int threads = at::get_num_threads();
  const at::Tensor one = gradient(1), several = gradient(3);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, several));
}

}  // namespace
}  // namespace qat
