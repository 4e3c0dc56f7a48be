#include <gtest/gtest.h>

#include "qat/checkpoint/formats/gguf.h"
#include "qat/recipe/presets.h"
#include "tests/qat/checkpoint/formats/layers.h"
#include "tests/qat/preset_weights.h"

namespace qat {
namespace {

QuantizedWeights layer(int bits, bool symmetric = true, int64_t group = 32) {
  QuantSpec spec = group_spec(bits, group);
  if (!symmetric) spec.grid = Grid::asymmetric;
  return random_layer("a", spec, 2, 64);
}

float half_at(const at::Tensor& bytes, int64_t at) {
  return bytes.slice(0, at, at + 2).contiguous().view(at::kHalf).item<float>();
}

TEST(Gguf, Q4_0PairsColumnsSixteenApart) {
  const QuantizedWeights q = layer(4);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[1];
  ASSERT_EQ(row.numel(), 2 * 18);
  EXPECT_EQ(half_at(row, 18), q.scale[1][1].item<float>());
  for (int j = 0; j < 16; ++j) {
    const int64_t byte = row[18 + 2 + j].item<int64_t>();
    EXPECT_EQ((byte & 15) - 8, q.codes[1][32 + j].item<int64_t>());
    EXPECT_EQ((byte >> 4) - 8, q.codes[1][32 + j + 16].item<int64_t>());
  }
}

TEST(Gguf, Q8_0HoldsCodesAsTheyAre) {
  const QuantizedWeights q = layer(6);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[0];
  ASSERT_EQ(row.numel(), 2 * 34);
  EXPECT_TRUE(at::equal(row.slice(0, 2, 34).view(at::kChar), q.codes[0].slice(0, 0, 32)));
}

TEST(Gguf, Q4_1StoresTheLeastLevel) {
  QuantizedWeights q = layer(4, false);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[0];
  ASSERT_EQ(row.numel(), 2 * 20);
  const float scale = q.scale[0][0].item<float>(), zero = (*q.zero_point)[0][0].item<float>();
  EXPECT_EQ(half_at(row, 2), -scale * (zero + 8.0f));
  q.scale.fill_(2047.0f / 4096.0f);  // 11 bits: no room left for a product
  q.zero_point->fill_(7);
  EXPECT_THROW(
      {
        try {
          gguf_tensors(q);
        } catch (const std::invalid_argument& error) {
          EXPECT_STREQ(
              error.what(),
              "gguf cannot hold a, because Q4_1 stores the least level of a block as a "
              "float16, which 4 of 4 are not; train with scale_dtype: float16, which makes "
              "them so.");
          throw;
        }
      },
      std::invalid_argument);
}

TEST(Gguf, Q2_0HasFourNeighboursInAByteUnderTheNegatedScale) {
  const QuantizedWeights q = layer(2, true, 64);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[1];
  ASSERT_EQ(gguf_type(q.weight, 64), "Q2_0");
  ASSERT_EQ(row.numel(), 18);
  EXPECT_EQ(half_at(row, 0), -q.scale[1][0].item<float>());
  for (int j = 0; j < 64; ++j) {
    const int64_t bits = row[2 + j / 4].item<int64_t>() >> (2 * (j % 4)) & 3;
    EXPECT_EQ(1 - bits, q.codes[1][j].item<int64_t>());
  }
}

TEST(Gguf, Q5_0HasTheFifthBitsBeforeTheNibbles) {
  const QuantizedWeights q = layer(5);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[0];
  ASSERT_EQ(row.numel(), 2 * 22);
  for (int j = 0; j < 32; ++j) {
    const int64_t fifth = row[2 + j / 8].item<int64_t>() >> (j % 8) & 1;
    const int64_t nibble = row[6 + j % 16].item<int64_t>() >> (j < 16 ? 0 : 4) & 15;
    EXPECT_EQ(nibble + 16 * fifth - 16, q.codes[0][j].item<int64_t>());
  }
}

TEST(Gguf, LargerGroupsRepeatTheirScale) {
  const QuantizedWeights q = layer(4, true, 64);
  const at::Tensor row = gguf_tensors(q).at("a.weight")[0];
  EXPECT_EQ(half_at(row, 0), q.scale[0][0].item<float>());
  EXPECT_EQ(half_at(row, 18), q.scale[0][0].item<float>());
}

// Each of what it counts is what it writes.
void expect_bits_as_written(const QuantizedWeights& q) {
  const Format& gguf = find_format("gguf");
  double bytes = 0;
  for (const auto& [name, tensor] : gguf_tensors(q)) bytes += static_cast<double>(tensor.nbytes());
  EXPECT_DOUBLE_EQ(bits_per_weight_in(gguf, q), 8 * bytes / static_cast<double>(q.codes.numel()))
      << gguf_type(q.weight, q.codes.size(1));
  EXPECT_EQ(size_of_weight_in(gguf, q.weight, q.codes.size(0), q.codes.size(1)), 8 * bytes);
}

TEST(Gguf, CountsBitsAsItWritesThem) {
  for (int bits = 2; bits <= 8; ++bits)
    for (int64_t group : {32, 64, 128, 256})
      for (Grid grid : {Grid::full, Grid::narrow, Grid::asymmetric}) {
        QuantSpec spec = group_spec(bits, group);
        spec.grid = grid;
        if (bits > 4 && !spec.symmetric()) continue;
        QuantizedWeights q = random_layer("a", spec, 4, 512);
        if (q.zero_point) q.zero_point->fill_(0);  // whose least levels are float16 numbers
        expect_bits_as_written(q);
      }
  for (const std::string& name : find_format("gguf").number_types) {
    SCOPED_TRACE(name);
    expect_bits_as_written(preset_weights("a", find_preset(name)->spec, at::randn({4, 512})));
  }
}

TEST(Gguf, RefusesGroupsThatAreNoBlocks) {
  EXPECT_NE(refusal_of("gguf", {layer(4, true, 16)}).find("multiples of 32 columns, but have 16"),
            std::string::npos);
  EXPECT_NE(refusal_of("gguf", {layer(8, false)}).find("Q8_0 is symmetric"), std::string::npos);
}

}  // namespace
}  // namespace qat
