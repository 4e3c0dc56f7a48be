#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include "qat/ops/encode.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/quant_linear.h"
#include "qat/ops/quantize.h"
#include "tests/ops/quantizer_text.h"

// Tensors in bfloat16 and float16 are computed in float32, and rounded once.
namespace qat {
namespace {

class HalfPrecision : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor half(at::IntArrayRef shape, double size = 1.0) {
    return (at::randn(shape) * size).to(GetParam());
  }
};

TEST_P(HalfPrecision, GradientsArePassedOrNotButNeverRounded) {
  // 37 columns: pairs of elements, and one that is left over.
  const at::Tensor x = half({5, 37}, 6.0), grad = half({5, 37}), scale = at::rand({5, 1}) + 0.3;
  const at::Tensor passed = std::get<0>(fake_quantize_backward(
      grad, x, text("fixed", 4, "full", {1, -1}), scale, std::nullopt, std::nullopt));
  const at::Tensor expected = std::get<0>(
      fake_quantize_backward(grad.to(at::kFloat), x.to(at::kFloat),
                             text("fixed", 4, "full", {1, -1}), scale, std::nullopt, std::nullopt));
  EXPECT_EQ(passed.scalar_type(), GetParam());
  EXPECT_TRUE(at::equal(passed.to(at::kFloat), expected));
  EXPECT_GT((expected == 0).sum().item<int64_t>(), 0);
}

TEST_P(HalfPrecision, LearnedParametersHaveTheGradientsOfFloat32) {
  const at::Tensor x = half({4, 300}, 6.0), grad = half({4, 300}), scale = at::rand({4, 1}) + 0.3;
  const at::Tensor zero = at::tensor({-2.0f, 0.0f, 1.0f, 3.0f}).reshape({4, 1});
  const auto run = [&](const at::Tensor& g, const at::Tensor& values) {
    return fake_quantize_backward(g, values,
                                  text("learned", 4, "asymmetric", {1, -1}, at::kFloat, 0.5), scale,
                                  zero, std::nullopt);
  };
  const auto [x_half, scale_half, zero_half] = run(grad, x);
  const auto [x_float, scale_float, zero_float] = run(grad.to(at::kFloat), x.to(at::kFloat));
  EXPECT_TRUE(at::equal(x_half.to(at::kFloat), x_float));
  EXPECT_TRUE(at::equal(scale_half, scale_float));
  EXPECT_TRUE(at::equal(zero_half, zero_float));
}

// Results beyond 32 MB go past the cache, from a stage, wherever a row ends.
TEST_P(HalfPrecision, LargeTensorsAreTheirRows) {
  for (const int64_t cols : {4096, 2999}) {
    const at::Tensor x = half({17 * 1024 * 1024 / cols + 1, cols}, 0.02);
    for (const int64_t group : {128, -1}) {
      const at::Tensor y =
          std::get<0>(fake_quantize(x, text("minmax", 4, "full", {1, group}, at::kBFloat16)));
      for (const int64_t row : {int64_t{0}, x.size(0) / 2, x.size(0) - 1}) {
        const at::Tensor one = x.slice(0, row, row + 1);
        EXPECT_TRUE(at::equal(
            y.slice(0, row, row + 1),
            std::get<0>(fake_quantize(one, text("minmax", 4, "full", {1, group}, at::kBFloat16)))));
      }
    }
  }
}

TEST_P(HalfPrecision, ElementsThatAreNotFiniteSpoilTheirBlockAlone) {
  at::Tensor x = half({3, 64});
  x[1][40] = NAN;
  x[2][0] = INFINITY;
  const auto [y, scale, zero] = fake_quantize(x, text("minmax", 4, "full", {1, 32}, at::kFloat));
  EXPECT_TRUE(at::equal(y.isnan(), at::isfinite(x).logical_not()));
  EXPECT_TRUE(at::isfinite(scale).all().item<bool>());
  for (const int64_t bits : {4, 6}) {
    const auto [codes, kept, point] = encode(x, text("minmax", bits, "full", {1, 32}, at::kFloat),
                                             std::nullopt, std::nullopt, std::nullopt);
    EXPECT_TRUE(kept[1][1].isnan().item<bool>() && kept[2][0].isnan().item<bool>());
    EXPECT_EQ(kept.isnan().sum().item<int64_t>(), 2);
  }
}

// A GPU's NaN, whose bits are all ones, and one of x86's, with its sign.
TEST_P(HalfPrecision, ScalesAndOffsetsThatAreNaNOfAnyBitsGiveNaN) {
  const at::Tensor bits = at::tensor({0x7fffffff, static_cast<int>(0xffffffff), 0x7fc00000});
  const at::Tensor nan = bits.view(at::kFloat).view({3, 1}), one = at::ones({3, 1});
  const at::Tensor x = half({3, 37}), zero = at::zeros({3, 1}, at::kChar);
  const auto all_nan = [&](const at::Tensor& y) {
    EXPECT_EQ(y.scalar_type(), GetParam());
    return y.isnan().all().item<bool>();
  };
  for (const int64_t width : {4, 8}) {
    const std::string fixed = text("fixed", width, "full", {1, -1});
    EXPECT_TRUE(all_nan(rounded(x, fixed, nan)));
    EXPECT_TRUE(all_nan(rounded(x, fixed, nan, zero)));
    const auto [codes, scale, point] = encode(x, fixed, one, std::nullopt, std::nullopt);
    EXPECT_TRUE(all_nan(decode(codes, fixed, nan, point, 37, GetParam())));
    EXPECT_TRUE(
        all_nan(dequantize(quantize(x, fixed, one), nan, std::nullopt, {1, -1}, GetParam())));
  }
  const std::string offset = text("fixed", 4, "offset", {1, -1});
  EXPECT_TRUE(all_nan(rounded(x, offset, one, nan)));
  EXPECT_TRUE(all_nan(dequantize(quantize(x, offset, one, one), one, nan, {1, -1}, GetParam())));
  EXPECT_TRUE(all_nan(rounded(x, "fixed fp8_e4m3 1x-1 float32", nan)));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, HalfPrecision, testing::Values(at::kBFloat16, at::kHalf));

TEST(Autocast, MultipliesInItsDtypeAndRoundsTheWeightInItsOwn) {
  const at::Tensor x = at::randn({3, 32}), weight = at::randn({8, 32});
  const auto run = [&](const at::Tensor& input) {
    return quant_linear(input, weight, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                        std::nullopt, {}, "minmax int4 narrow 1x32 float32", "");
  };
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const at::Tensor y = run(x);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(y, run(x.to(at::kBFloat16))));
}

}  // namespace
}  // namespace qat
