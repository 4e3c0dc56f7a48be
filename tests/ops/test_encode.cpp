#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/encode.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

TEST(Encode, DecodesToWhatFakeQuantizeGives) {
  for (const auto* grid : {"narrow", "full", "signed", "asymmetric"})
    for (const std::vector<int64_t>& block :
         std::vector<std::vector<int64_t>>{{-1, -1}, {1, -1}, {1, 32}, {1, 7}, {4, 16}})
      for (const int64_t bits : {2, 3, 4, 5, 8})
        for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
          const at::Tensor x = at::randn({12, 97}).to(dtype);
          const auto [y, s, z] = fake_quantize(x, text("minmax", bits, grid, block, at::kBFloat16));
          const auto [codes, scale, zero] =
              encode(x, text("minmax", bits, grid, block, at::kBFloat16), std::nullopt,
                     std::nullopt, std::nullopt);
          EXPECT_TRUE(at::equal(scale, s) && at::equal(zero, z));
          EXPECT_TRUE(
              at::equal(decode(codes, text("fixed", bits, grid, block), scale, zero, 97, dtype), y))
              << grid << " " << bits << " " << dtype;
        }
}

TEST(Encode, TwoCodesShareAByteInTheOrderThatTheHeaderSays) {
  // Levels -3 to 4 on a scale of 1; byte j holds elements 2 j and 2 j + 1.
  const at::Tensor x = at::arange(-3.0, 5.0).view({1, 8});
  const at::Tensor one = at::ones({1, 1});
  const auto codes = std::get<0>(
      encode(x, text("fixed", 4, "full", {1, 8}, at::kFloat), one, std::nullopt, std::nullopt));
  for (int64_t j = 0; j < 4; ++j)
    EXPECT_EQ(codes[0][j].item<int>(), (2 * j - 3 + 8) | (2 * j - 2 + 8) << 4);
}

}  // namespace
}  // namespace qat
