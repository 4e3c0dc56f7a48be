#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "qat/artifact.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"

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
  spec.scale_dtype = c10::ScalarType::Float;
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

}  // namespace
}  // namespace qat
