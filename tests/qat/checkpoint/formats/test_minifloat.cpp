#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/checkpoint/formats/minifloat.h"
#include "qat/ops/quantize.h"
#include "qat/ops/quantizer.h"

namespace qat {
namespace {

TEST(Minifloat, BitsAreThoseOfTheStandards) {
  // OCP MX, tables 4 and 5: E2M1 in whole, and the ends of E2M3 and E3M2.
  const at::Tensor e2m1 = at::tensor({0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f});
  const at::Tensor bits = at::arange(8, at::kByte);
  const at::Tensor codes = at::cat({e2m1, -e2m1}).to(at::kFloat8_e4m3fn);
  EXPECT_TRUE(at::equal(minifloat_bits(codes, Grid::e2m1), at::cat({bits, bits + 8})));
  const auto bits_of = [](float number, Grid grid) {
    return minifloat_bits(at::full({1}, number).to(at::kFloat8_e4m3fn), grid).item<int>();
  };
  EXPECT_EQ(bits_of(0.125f, Grid::e2m3), 0b000001);
  EXPECT_EQ(bits_of(1.0f, Grid::e2m3), 0b001000);
  EXPECT_EQ(bits_of(-7.5f, Grid::e2m3), 0b111111);
  EXPECT_EQ(bits_of(0.0625f, Grid::e3m2), 0b000001);
  EXPECT_EQ(bits_of(0.25f, Grid::e3m2), 0b000100);
  EXPECT_EQ(bits_of(-28.0f, Grid::e3m2), 0b111111);
}

TEST(Minifloat, BitsOfTorchsTypesAreTheirBytes) {
  for (const auto& [grid, dtype] :
       {std::pair(Grid::e4m3, at::kFloat8_e4m3fn), std::pair(Grid::e5m2, at::kFloat8_e5m2)}) {
    const at::Tensor bytes = at::arange(256).to(at::kByte);
    const at::Tensor codes = bytes.view(dtype);
    const at::Tensor finite = codes.to(at::kFloat).abs().le(levels_of(grid, 8).max);
    EXPECT_TRUE(
        at::equal(minifloat_bits(codes, grid).masked_select(finite), bytes.masked_select(finite)));
  }
}

TEST(Minifloat, EveryCodeComesBackWithItsSign) {
  for (const Grid grid : {Grid::e2m1, Grid::e2m3, Grid::e3m2}) {
    const at::Tensor bits = at::arange(1 << named_bits(grid)).to(at::kByte);
    const at::Tensor codes = minifloat_of_bits(bits, grid);
    EXPECT_EQ(codes.scalar_type(), code_dtype(grid));
    EXPECT_TRUE(at::equal(minifloat_bits(codes, grid), bits)) << grid_name(grid);
  }
}

}  // namespace
}  // namespace qat
