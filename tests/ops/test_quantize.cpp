#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/quantize.h"
#include "tests/ops/quantizer_text.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

TEST(Quantize, DequantizingTheCodesIsFakeQuantizing) {
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const auto* grid : {"narrow", "full", "signed", "asymmetric"}) {
      const at::Tensor x = at::randn({32, 96}).to(dtype);
      const auto [scale, zero_point] =
          choose_qparams(x, text("minmax", 4, grid, {1, 32}, at::kBFloat16), "minmax");
      const at::Tensor codes =
          quantize(x, text("fixed", 4, "asymmetric", {1, 32}), scale, zero_point);
      EXPECT_EQ(codes.scalar_type(), at::kChar);
      EXPECT_TRUE(
          at::equal(dequantize(codes, scale, zero_point, {1, 32}, dtype),
                    rounded(x, text("fixed", 4, "asymmetric", {1, 32}), scale, zero_point)));
    }
}

TEST(Quantize, SaturatesAndSendsNanToTheLowestLevel) {
  const at::Tensor x = at::tensor({INFINITY, -INFINITY, NAN, 1e30f}).view({1, 4});
  const at::Tensor codes = quantize(x, text("fixed", 4, "full", {-1, -1}), at::ones({1, 1}));
  EXPECT_TRUE(at::equal(codes.to(at::kInt), at::tensor({7, -8, -8, 7}, at::kInt).view({1, 4})));
}

// A gradient that lies in memory as another shape's, on a device without a kernel of its own.
TEST(Dequantize, ItsBackwardTakesGradientsOfAnyStrides) {
  const at::Tensor codes = at::randint(-8, 8, {2, 3, 16}, at::kChar), scale = at::rand({6, 2});
  const at::Tensor grad = at::randn({16, 3, 2}).permute({2, 1, 0});
  const at::Tensor expected =
      dequantize_backward(grad.contiguous(), codes, scale, std::nullopt, {1, 8});
  EXPECT_TRUE(at::equal(dequantize_backward(grad, codes, scale, std::nullopt, {1, 8}), expected));
  const at::Device device = other_device();
  EXPECT_TRUE(at::allclose(
      dequantize_backward(grad.to(device), codes.to(device), scale.to(device), std::nullopt, {1, 8})
          .cpu(),
      expected, 1e-5, 1e-5));
}

TEST(Dequantize, RefusesCodesThatAreNotInt8) {
  EXPECT_THROW(
      dequantize(at::zeros({1, 4}, at::kInt), at::ones({1, 1}), std::nullopt, {1, -1}, at::kFloat),
      c10::TypeError);
}

}  // namespace
}  // namespace qat
