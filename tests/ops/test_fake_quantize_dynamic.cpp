#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/fake_quantize_dynamic.h"

namespace qat {
namespace {

const std::vector<std::string> kGrids{"narrow", "full", "signed", "asymmetric"};

TEST(FakeQuantizeDynamic, EqualsChoosingAndThenQuantizing) {
  for (const auto& grid : kGrids)
    for (const std::vector<int64_t>& block :
         std::vector<std::vector<int64_t>>{{-1, -1}, {1, -1}, {1, 32}, {1, 7}, {4, 16}})
      for (const int64_t bits : {2, 3, 4, 8}) {
        const at::Tensor x = at::randn({12, 96});
        const auto [y, scale, zero_point] =
            fake_quantize_dynamic(x, block, bits, grid, at::kBFloat16);
        const auto [s, z] = choose_qparams(x, block, bits, grid, "minmax", at::kBFloat16);
        EXPECT_TRUE(at::equal(scale, s));
        EXPECT_TRUE(at::equal(zero_point, z));
        const int64_t half = int64_t{1} << (bits - 1);
        EXPECT_TRUE(at::equal(
            y, fake_quantize(x, s, z, block, grid == "narrow" ? 1 - half : -half, half - 1)));
      }
}

TEST(FakeQuantizeDynamic, NarrowBackwardIsTheIdentityAndKeepsNothing) {
  const at::Tensor x = at::randn({4, 64}).requires_grad_(true);
  const at::Tensor gradient = at::randn({4, 64});
  std::get<0>(fake_quantize_dynamic(x, {1, 32}, 4, "narrow", at::kBFloat16)).backward(gradient);
  EXPECT_TRUE(at::equal(x.grad(), gradient));
}

TEST(FakeQuantizeDynamic, NarrowNeverClips) {
  // What makes the identity right: even with a scale rounded to bfloat16, no level leaves the grid.
  for (int bits = 2; bits <= 8; ++bits) {
    const at::Tensor x = at::randn({256, 32}) * at::logspace(-6, 6, 256).view({256, 1});
    const auto [scale, zero_point] =
        choose_qparams(x, {1, 32}, bits, "narrow", "minmax", at::kBFloat16);
    const at::Tensor levels = (x * scale.reciprocal()).round().abs();
    EXPECT_LE(levels.max().item<float>(), static_cast<float>((1 << (bits - 1)) - 1));
  }
}

TEST(FakeQuantizeDynamic, FullGridMasksWhatItClips) {
  const at::Tensor x = at::tensor({7.5f, -7.5f, 1.0f}).view({1, 3}).requires_grad_(true);
  std::get<0>(fake_quantize_dynamic(x, {1, -1}, 4, "full", at::kFloat)).sum().backward();
  // +7.5 ties to level 8, off the grid; -7.5 to -8, on it.
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({0.0f, 1.0f, 1.0f}).view({1, 3})));
}

TEST(FakeQuantizeDynamic, GivesTheSameBitsWithAnyNumberOfThreads) {
  const at::Tensor x = at::randn({513, 257});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one =
      std::get<0>(fake_quantize_dynamic(x, {1, 32}, 4, "asymmetric", at::kBFloat16));
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(
      one, std::get<0>(fake_quantize_dynamic(x, {1, 32}, 4, "asymmetric", at::kBFloat16))));
}

TEST(FakeQuantizeDynamic, RefusesBadBitsAndGrids) {
  EXPECT_THROW(fake_quantize_dynamic(at::zeros({1, 4}), {1, -1}, 1, "narrow", at::kFloat),
               c10::ValueError);
  EXPECT_THROW(fake_quantize_dynamic(at::zeros({1, 4}), {1, -1}, 9, "narrow", at::kFloat),
               c10::ValueError);
  EXPECT_THROW(fake_quantize_dynamic(at::zeros({1, 4}), {1, -1}, 4, "wide", at::kFloat),
               c10::ValueError);
}

}  // namespace
}  // namespace qat
