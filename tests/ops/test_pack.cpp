#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/pack.h"
#include "tests/ops/peak_memory.h"
#include "tests/qat/other_device.h"

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
  for (const int64_t bits : {2, 3, 4, 5, 6, 7, 8})
    for (const int64_t cols : {1, 7, 16, 33}) {
      const int64_t half = int64_t{1} << (bits - 1);
      const at::Tensor values = at::randint(-half, half, {3, 5, cols}, at::kChar);
      EXPECT_TRUE(at::equal(unpack(pack(values, bits), bits, cols), values)) << bits << " " << cols;
    }
}

// Such as codes 10 and 21 of 32 in 3 bits, which straddle words.
TEST(Pack, WidthsThatWordsAreNoMultipleOfFormAStream) {
  for (const int64_t bits : {3, 5, 6, 7}) {
    const int low = -(1 << (bits - 1));
    for (int64_t index = 0; index < 32; ++index) {
      std::vector<int> values(32, low);
      values[static_cast<size_t>(index)] = -low - 1;  // all ones
      const at::Tensor words = pack(codes(values), bits);
      ASSERT_EQ(words.sizes(), at::IntArrayRef({bits}));
      for (int64_t bit = 0; bit < 32 * bits; ++bit) {
        const bool set = (words[bit / 32].item<int32_t>() >> (bit % 32)) & 1;
        ASSERT_EQ(set, bit / bits == index) << bits << " " << index << " " << bit;
      }
    }
  }
}

TEST(Pack, AStreamEndsWithItsRun) {
  EXPECT_EQ(packed_words(33, 5), 10);
  EXPECT_EQ(packed_words(17, 6), 6);
  EXPECT_EQ(pack(codes({-16, 15, 1}), 5)[0].item<int32_t>(), (31 << 5) | (17 << 10));
}

TEST(Pack, RowsOfAnyNumberOfDimensions) {
  for (const int64_t bits : {3, 4})
    for (const auto& shape : std::vector<std::vector<int64_t>>{{40}, {2, 40}, {2, 3, 4, 40}}) {
      const at::Tensor values = at::randint(-4, 4, shape, at::kChar);
      const at::Tensor restored = unpack(pack(values, bits), bits, 40);
      EXPECT_EQ(restored.sizes(), values.sizes());
      EXPECT_TRUE(at::equal(restored, values));
    }
}

TEST(Pack, ACodeThatDoesNotFitLeavesItsNeighbourAlone) {
  EXPECT_EQ(pack(codes({9, 0}), 4).item<int32_t>(), 0x81);
}

TEST(Pack, UnusedBitsAreZero) { EXPECT_EQ(pack(codes({7}), 4).item<int32_t>(), 15); }

TEST(Pack, RefusesOtherWidthsAndWrongSizes) {
  EXPECT_THROW(pack(codes({0}), 1), c10::ValueError);
  EXPECT_THROW(pack(codes({0}), 9), c10::ValueError);
  EXPECT_THROW(unpack(at::zeros({2}, at::kInt), 4, 17), c10::ValueError);
  EXPECT_THROW(pack(at::zeros({4}), 4), c10::TypeError);
  EXPECT_THROW(pack(at::zeros({}, at::kChar), 4), c10::ValueError);
  EXPECT_THROW(unpack(at::zeros({}, at::kInt), 4, 8), c10::ValueError);
}

TEST(Pack, WhereItsCodesAre) {
  for (const int64_t bits : {2, 3, 4, 5, 6, 7, 8}) {
    const at::Tensor values = at::randint(-2, 2, {3, 40}, at::kChar);
    const at::Tensor packed = pack(values.to(other_device()), bits);
    EXPECT_TRUE(at::equal(packed.cpu(), pack(values, bits)));
    EXPECT_TRUE(at::equal(unpack(packed, bits, 40).cpu(), values));
  }
}

TEST(Pack, TakesNoMoreThanItsCodesAndWords) {
  const at::Tensor values = at::randint(-2, 2, {256, 4096}, at::kChar);
  for (const int64_t bits : {2, 3, 4}) {
    const int64_t peak = peak_memory([&] { return pack(values, bits); });
    EXPECT_GT(peak, 0);
    EXPECT_LE(peak, 3 * values.numel()) << bits;  // bytes; int32 for all codes take 4
  }
}

}  // namespace
}  // namespace qat
