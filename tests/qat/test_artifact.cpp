#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "qat/artifact.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "tests/qat/message_of.h"
#include "tests/qat/preset_weights.h"

namespace qat {
namespace {

QuantSpec int4_group(Grid grid) {
  QuantSpec spec;
  spec.bits = 4;
  spec.grid = grid;
  spec.granularity = Granularity::group;
  spec.group_size = 32;
  return spec;
}

TEST(QuantizeWeights, ReadersComputeWhatTheForwardUsed) {
  for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const QuantSpec spec = int4_group(grid);
      const at::Tensor weight = at::randn({16, 64}).to(dtype);
      const auto [scale, zero_point] =
          choose_qparams(weight, quantizer_of(spec, 4, Quantizer::Mode::minmax).text(), "minmax");
      const QuantizedWeights converted =
          quantize_weights("layer", spec, weight, scale, zero_point, dtype);
      EXPECT_TRUE(at::equal(
          dequantize_weights(converted),
          std::get<0>(fake_quantize(weight, quantizer_of(spec, 4, Quantizer::Mode::fixed).text(),
                                    scale, zero_point))));
      EXPECT_EQ(converted.zero_point.has_value(), grid == Grid::asymmetric);
    }
}

TEST(QuantizeWeights, NamesALayerThatIsNotFinite) {
  at::Tensor weight = at::zeros({2, 32});
  weight[0][3] = NAN;
  try {
    quantize_weights("model.q_proj", int4_group(Grid::narrow), weight, at::ones({2, 1}),
                     at::zeros({2, 1}, at::kChar), at::kFloat);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(
        error.what(),
        "The weight of model.q_proj must be finite, but has 1 elements that are NaN or infinite.");
  }
}

TEST(QuantizeWeights, RefusesADtypeThatCannotHoldTheScales) {
  QuantSpec spec = int4_group(Grid::narrow);
  spec.scale = {ScaleCode::float32};
  EXPECT_THROW(quantize_weights("layer", spec, at::randn({2, 32}), at::full({2, 1}, 0.1f),
                                at::zeros({2, 1}, at::kChar), at::kBFloat16),
               std::invalid_argument);
}

TEST(BitsPerWeight, CountsScalesAndZeroPoints) {
  const at::Tensor weight = at::randn({4, 64});
  const at::Tensor scale = at::ones({4, 2}), zero_point = at::zeros({4, 2}, at::kChar);
  EXPECT_DOUBLE_EQ(bits_per_weight(quantize_weights("l", int4_group(Grid::narrow), weight, scale,
                                                    zero_point, at::kBFloat16)),
                   4 + 16.0 / 32);
  EXPECT_DOUBLE_EQ(bits_per_weight(quantize_weights("l", int4_group(Grid::asymmetric), weight,
                                                    scale, zero_point, at::kBFloat16)),
                   4 + 20.0 / 32);
}

TEST(QuantizeWeights, OfEveryPresetReadersComputeWhatTheForwardUsed) {
  for (const Preset& preset : presets())
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      for (const double size : {1.0, 1e-4, 1e3}) {
        const at::Tensor weight = at::randn({24, 512}).mul(size).to(dtype);
        weight[3].zero_();
        const QuantizedWeights weights = preset_weights("layer", preset.spec, weight);
        const Quantizer quantizer =
            quantizer_of(preset.spec, preset.spec.bits, Quantizer::Mode::minmax);
        const at::Tensor forward = std::get<0>(fake_quantize(weight, quantizer.text()));
        EXPECT_TRUE(at::equal(dequantize_weights(weights, dtype), forward)) << preset.name;
        EXPECT_EQ(weights.scale.scalar_type(), scale_storage(preset.spec.scale, at::kHalf));
      }
}

TEST(QuantizeWeights, RowsAreALayerOfTheirOwn) {
  for (const Preset& preset : presets()) {
    const QuantizedWeights all = preset_weights("experts", preset.spec, at::randn({24, 512}));
    const QuantizedWeights part = rows_of(all, "experts.1", 8, 16);
    EXPECT_EQ(part.name, "experts.1");
    EXPECT_TRUE(at::equal(dequantize_weights(part), dequantize_weights(all).slice(0, 8, 16)))
        << preset.name;
  }
}

TEST(QuantizeWeights, RowsThatABlockLiesAcrossAreRefused) {
  QuantSpec spec;
  spec.granularity = Granularity::block;
  spec.block = {16, 32};
  const at::Tensor ones = at::ones({2, 2});
  const QuantizedWeights all = quantize_weights("experts", spec, at::randn({32, 64}), ones,
                                                at::zeros({2, 2}, at::kChar), at::kFloat);
  EXPECT_TRUE(at::equal(rows_of(all, "b", 16, 32).scale, ones.slice(0, 0, 1)));
  EXPECT_THROW(rows_of(all, "a", 0, 8), std::invalid_argument);
}

TEST(QuantizeWeights, CountTheBitsOfBothLevelsOfScales) {
  const std::pair<const char*, double> kExpected[] = {{"nvfp4", 4.5 + 32.0 / (24 * 512)},
                                                      {"mxfp4", 4.25},
                                                      {"mxfp6_e2m3", 6.25},
                                                      {"mxfp8_e5m2", 8.25},
                                                      {"q2_k", 2.625},
                                                      {"q3_k", 3.4375},
                                                      {"q4_k", 4.5},
                                                      {"q5_k", 5.5},
                                                      {"q6_k", 6.5625},
                                                      {"q5_1", 6.0},
                                                      {"q2_0", 2.25},
                                                      {"tq2_0", 2.0625},
                                                      {"iq4_nl", 4.5},
                                                      {"iq4_xs", 4.25}};
  for (const auto& [name, bits] : kExpected)
    EXPECT_DOUBLE_EQ(
        bits_per_weight(preset_weights("layer", find_preset(name)->spec, at::randn({24, 512}))),
        bits)
        << name;
}

TEST(QuantizeWeights, RefusesScalesThatAreNoMultiplesOfTheirOuterOnes) {
  const QuantSpec spec = find_preset("nvfp4")->spec;
  EXPECT_EQ(message_of([&] {
              quantize_weights("q_proj", spec, at::randn({2, 16}), at::full({2, 1}, 0.3),
                               at::zeros({2, 1}, at::kChar), at::kFloat, {at::ones({1, 1}), {}});
            }),
            "The scales of q_proj must be multiples of its outer scales in e4m3*float32, but are "
            "not.");
}

}  // namespace
}  // namespace qat
