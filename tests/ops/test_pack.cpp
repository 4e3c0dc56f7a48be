#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "ops/pack.h"

namespace qat {
namespace {

at::Tensor codes(std::vector<int> values) { return at::tensor(values, at::kInt).to(at::kChar); }

TEST(Pack, WorkedExamplesOfTheFormat) {
  EXPECT_EQ(pack(codes({-8, -7, -1, 0, 1, 2, 6, 7}), 4).item<int32_t>(),
            static_cast<int32_t>(0xFEA98710));
  EXPECT_EQ(pack(codes({-128, -1, 0, 127}), 8).item<int32_t>(), static_cast<int32_t>(0xFF807F00));
  EXPECT_EQ(pack(codes({-8, -3, 0, 1, 2, 3, 4, 7}), 4).item<int32_t>(),
            static_cast<int32_t>(0xFCBA9850));
}

TEST(Pack, UnpackRestoresTheCodes) {
  for (const int64_t bits : {2, 4, 8})
    for (const int64_t cols : {1, 7, 16, 33}) {
      const int64_t half = int64_t{1} << (bits - 1);
      const at::Tensor values = at::randint(-half, half, {3, 5, cols}, at::kChar);
      EXPECT_TRUE(at::equal(unpack(pack(values, bits), bits, cols), values)) << bits << " " << cols;
    }
}

TEST(Pack, UnusedBitsAreZero) { EXPECT_EQ(pack(codes({7}), 4).item<int32_t>(), 15); }

TEST(Pack, RefusesOtherWidthsAndWrongSizes) {
  EXPECT_THROW(pack(codes({0}), 3), c10::ValueError);
  EXPECT_THROW(unpack(at::zeros({2}, at::kInt), 4, 17), c10::ValueError);
  EXPECT_THROW(pack(at::zeros({4}), 4), c10::TypeError);
}

}  // namespace
}  // namespace qat
