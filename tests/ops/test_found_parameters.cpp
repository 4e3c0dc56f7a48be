#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

const std::vector<std::string> kGrids{"narrow", "full", "signed", "asymmetric"};

TEST(FoundParameters, EqualsChoosingAndThenQuantizing) {
  for (const auto& grid : kGrids)
    for (const std::vector<int64_t>& block :
         std::vector<std::vector<int64_t>>{{-1, -1}, {1, -1}, {1, 32}, {1, 7}, {4, 16}})
      for (const int64_t bits : {2, 3, 4, 8}) {
        const at::Tensor x = at::randn({12, 96});
        const auto [y, scale, zero_point] =
            fake_quantize(x, text("minmax", bits, grid, block, at::kBFloat16));
        const auto [s, z] =
            choose_qparams(x, text("minmax", bits, grid, block, at::kBFloat16), "minmax");
        EXPECT_TRUE(at::equal(scale, s));
        EXPECT_TRUE(at::equal(zero_point, z));
        EXPECT_TRUE(at::equal(y, rounded(x, text("fixed", bits, grid, block), s, z)));
      }
}

TEST(FoundParameters, NarrowBackwardIsTheIdentityAndKeepsNothing) {
  const at::Tensor x = at::randn({4, 64}).requires_grad_(true);
  const at::Tensor gradient = at::randn({4, 64});
  std::get<0>(fake_quantize(x, text("minmax", 4, "narrow", {1, 32}, at::kBFloat16)))
      .backward(gradient);
  EXPECT_TRUE(at::equal(x.grad(), gradient));
}

TEST(FoundParameters, NarrowNeverClips) {
  // What makes the identity right: even with a scale rounded to bfloat16, no level leaves the grid.
  for (int bits = 2; bits <= 8; ++bits) {
    const at::Tensor x = at::randn({256, 32}) * at::logspace(-6, 6, 256).view({256, 1});
    const auto [scale, zero_point] =
        choose_qparams(x, text("minmax", bits, "narrow", {1, 32}, at::kBFloat16), "minmax");
    const at::Tensor levels = (x * scale.reciprocal()).round().abs();
    EXPECT_LE(levels.max().item<float>(), static_cast<float>((1 << (bits - 1)) - 1));
  }
}

TEST(FoundParameters, FullGridMasksWhatItClips) {
  const at::Tensor x = at::tensor({7.5f, -7.5f, 1.0f}).view({1, 3}).requires_grad_(true);
  std::get<0>(fake_quantize(x, text("minmax", 4, "full", {1, -1}, at::kFloat))).sum().backward();
  // +7.5 ties to level 8, off the grid; -7.5 to -8, on it.
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({0.0f, 1.0f, 1.0f}).view({1, 3})));
}

TEST(FoundParameters, GivesTheSameBitsWithAnyNumberOfThreads) {
  const at::Tensor x = at::randn({513, 257});
  const auto on = [&](int threads) {
    at::set_num_threads(threads);
    return std::get<0>(fake_quantize(x, text("minmax", 4, "asymmetric", {1, 32}, at::kBFloat16)));
  };
  const int threads = at::get_num_threads();
  const at::Tensor one = on(1), several = on(3);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, several));
}

TEST(FoundParameters, RefusesBadBitsAndGrids) {
  for (const auto* quantizer :
       {"minmax int1 narrow 1x-1 float32", "minmax int9 narrow 1x-1 float32",
        "minmax int4 wide 1x-1 float32", ""})
    EXPECT_THROW(fake_quantize(at::zeros({1, 4}), quantizer), c10::ValueError) << quantizer;
}

}  // namespace
}  // namespace qat
