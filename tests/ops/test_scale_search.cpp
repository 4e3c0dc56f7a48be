#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/candidates.h"
#include "qat/ops/choose_qparams.h"
#include "tests/ops/quantizer_text.h"

// The search for what is stored, and the better of a / 6 and a / 4: numerics.md (9a) and (10).
namespace qat {
namespace {

const std::string kNvfp4 = "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1";
const std::string kFourOverSix = "minmax fp4_e2m1 1x16 e4m3_four_over_six*float32@-1x-1";
const std::string kQ4K = "minmax int4 offset 1x32 int6*float16@1x256";
const std::string kQ6K = "minmax int6 signed 1x16 int8*float16@1x256";

at::Tensor fixed(const at::Tensor& x, const std::string& found, const at::Tensor& scale,
                 const std::optional<at::Tensor>& zero = {}) {
  return rounded(x, "fixed" + found.substr(found.find(' ')), scale, zero);
}

// The squared error of each block of a row, float64 [rows, blocks].
at::Tensor errors_of(const at::Tensor& x, const at::Tensor& y, int64_t block) {
  return (x - y).to(at::kDouble).square().view({x.size(0), -1, block}).sum(2);
}

// Numbers of E4M3 by torch's own type.
at::Tensor e4m3_numbers() {
  return at::arange(0, 127, at::kByte).view(at::kFloat8_e4m3fn).to(at::kFloat);
}

TEST(ScaleSearch, PlacesAreCodes) {
  const at::Tensor numbers = e4m3_numbers();
  for (int32_t place = 0; place < 127; ++place) {
    EXPECT_EQ(number_at(place, ScaleCode::e4m3), numbers[place].item<float>()) << place;
    EXPECT_EQ(place_of(number_at(place, ScaleCode::e4m3), ScaleCode::e4m3), place);
  }
  for (const ScaleCode code : {ScaleCode::int6, ScaleCode::int8, ScaleCode::e8m0_floor})
    for (int32_t place = place_of(least_scale(code), code);
         place <= place_of(greatest_scale(code), code); ++place)
      EXPECT_EQ(place_of(number_at(place, code), code), place);
  EXPECT_EQ(number_at(127 - 3, ScaleCode::e8m0_even), 0.125f);
}

// No other code under the outer scale is better: all of them are tried here.
TEST(ScaleSearch, FindsTheBestCodeOfNvfp4) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({16, 64}) * at::logspace(-1.5, 0, 16).view({16, 1});
  const at::Tensor outer = std::get<0>(choose_outer_scales(x, kNvfp4));
  const at::Tensor scale = std::get<0>(choose_qparams(x, kNvfp4, "mse"));
  const at::Tensor found = errors_of(x, fixed(x, kNvfp4, scale), 16);
  at::Tensor least = at::full_like(found, 1e30);
  const at::Tensor numbers = e4m3_numbers();
  for (int64_t code = 1; code < 127; ++code) {
    const at::Tensor all = at::full_like(scale, numbers[code].item<float>()) * outer;
    least = at::minimum(least, errors_of(x, fixed(x, kNvfp4, all), 16));
  }
  EXPECT_TRUE((found <= least * (1 + 1e-5)).all().item<bool>());
  // They are codes already.
  EXPECT_TRUE(at::equal(std::get<0>(round_qparams(scale, kNvfp4, std::nullopt, outer)), scale));
}

TEST(ScaleSearch, FindsTheBestPowerOfTwo) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({32, 64});
  for (const std::string code : {"e8m0_floor", "e8m0_even", "e8m0_ceil"}) {
    const std::string text = "minmax fp4_e2m1 1x32 " + code;
    const at::Tensor scale = std::get<0>(choose_qparams(x, text, "mse"));
    const at::Tensor found = errors_of(x, fixed(x, text, scale), 32);
    for (int exponent = -8; exponent < 4; ++exponent) {
      const at::Tensor all = at::full_like(scale, std::ldexp(1.0f, exponent));
      EXPECT_TRUE((found <= errors_of(x, fixed(x, text, all), 32) * (1 + 1e-5)).all().item<bool>())
          << code << " " << exponent;
    }
  }
}

// Codes that are searched under the outer scales are no worse than those of the range, nor than
// real numbers that are searched and rounded afterwards.
TEST(ScaleSearch, IsNoWorseThanRoundingAfterwards) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({8, 512});
  for (const std::string& text : {kNvfp4, kQ4K, kQ6K}) {
    const int64_t block = Quantizer::parse(text).block[1];
    const bool offsets = text == kQ4K;
    const auto error = [&](const std::tuple<at::Tensor, at::Tensor>& found) {
      return errors_of(x,
                       fixed(x, text, std::get<0>(found),
                             offsets ? std::optional(std::get<1>(found)) : std::nullopt),
                       block);
    };
    const auto [outer, outer_offset] = choose_outer_scales(x, text);
    const std::string real = text.substr(0, text.rfind(' ')) + " float32";
    const auto [scale, zero] = choose_qparams(x, real, "mse");
    const at::Tensor afterwards =
        error(round_qparams(scale, text, offsets ? std::optional(zero) : std::nullopt, outer));
    const at::Tensor searched = error(choose_qparams(x, text, "mse"));
    EXPECT_TRUE(
        (searched <= error(choose_qparams(x, text, "minmax")) * (1 + 1e-5)).all().item<bool>())
        << text;
    EXPECT_LT(searched.sum().item<double>(), 0.999 * afterwards.sum().item<double>()) << text;
  }
}

TEST(ScaleSearch, OuterScalesAreThoseOfTheRangeByEveryMethod) {
  const at::Tensor x = at::randn({4, 512});
  for (const std::string& text : {kNvfp4, kQ4K, kQ6K, kFourOverSix}) {
    const auto [outer, offset] = choose_outer_scales(x, text, "minmax");
    const auto [searched, searched_offset] = choose_outer_scales(x, text, "mse");
    EXPECT_TRUE(at::equal(outer, searched) && at::equal(offset, searched_offset)) << text;
  }
}

TEST(ScaleSearch, TakesGivenOuterScalesOfOffsets) {
  const at::Tensor x = at::randn({2, 256});
  const at::Tensor outer = at::full({2, 1}, 0x1p-7f), outer_offset = at::full({2, 1}, 0x1p-4f);
  for (const auto* method : {"minmax", "mse"}) {
    const auto [scale, offset] = choose_qparams(x, kQ4K, method, std::nullopt, outer, outer_offset);
    EXPECT_TRUE(at::equal((scale * 0x1p7).round(), scale * 0x1p7));
    EXPECT_TRUE(at::equal((offset * 0x1p4).round(), offset * 0x1p4));
  }
}

// arXiv 2512.02010: a / 6 or a / 4, whichever has less squared error, under an outer scale for which
// the largest a / 6 is 256 at most.
TEST(FourOverSix, IsTheBetterOfBothScales) {
  at::manual_seed(0);
  at::Tensor x = at::randn({32, 64}) * at::logspace(-2, 0, 32).view({32, 1});
  x.slice(0, 3, 4).slice(1, 0, 16).zero_();
  const at::Tensor largest = x.view({32, 4, 16}).abs().amax(2);
  const at::Tensor outer = (largest.max() / 6.0f / 256.0f).log2().ceil().exp2();
  EXPECT_EQ(std::get<0>(choose_outer_scales(x, kFourOverSix)).item<float>(), outer.item<float>());
  const auto stored = [&](float by) {
    const at::Tensor inner = (largest / by / outer).clamp_min(0x1p-9);
    return at::where(largest > 0, inner.to(at::kFloat8_e4m3fn).to(at::kFloat), at::ones({})) *
           outer;
  };
  const at::Tensor six = stored(6.0f), four = stored(4.0f);
  const at::Tensor of_six = errors_of(x, fixed(x, kFourOverSix, six), 16),
                   of_four = errors_of(x, fixed(x, kFourOverSix, four), 16);
  const at::Tensor expected = at::where(of_four < of_six, four, six);
  const auto [y, found, zero] = fake_quantize(x, kFourOverSix);
  // Sums in float32 may find what is all but equal the other way round.
  const at::Tensor sure = (of_four - of_six).abs() > 1e-6 * of_six;
  EXPECT_TRUE(
      at::equal(at::where(sure, found, at::zeros({})), at::where(sure, expected, at::zeros({}))));
  EXPECT_GT((found == four).sum().item<int64_t>(), 20);
  EXPECT_GT((found == six).sum().item<int64_t>(), 20);
  EXPECT_TRUE(at::equal(std::get<0>(choose_qparams(x, kFourOverSix, "minmax")), found));
  EXPECT_TRUE(at::equal(y, fixed(x, kFourOverSix, found)));
  const double plain = (rounded(x, kNvfp4) - x).square().sum().item<double>();
  EXPECT_LT((y - x).square().sum().item<double>(), 0.95 * plain);
}

TEST(FourOverSix, OfBlocksOfRowsCountsThemAll) {
  at::manual_seed(0);
  const std::string text = "minmax fp4_e2m1 4x16 e4m3_four_over_six*float32@-1x-1";
  const at::Tensor x = at::randn({16, 64});
  const auto [y, scale, zero] = fake_quantize(x, text);
  const at::Tensor six =
      std::get<0>(choose_qparams(x, "minmax fp4_e2m1 4x16 e4m3*float32@-1x-1", "minmax",
                                 std::nullopt, std::get<0>(choose_outer_scales(x, text))));
  EXPECT_LT((y - x).square().sum().item<double>(),
            0.97 * (fixed(x, text, six) - x).square().sum().item<double>());
  EXPECT_TRUE(at::equal(fixed(x, text, scale), y));
}

TEST(FourOverSix, GradientsPassStraightThroughToWhatIsOnTheGrid) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({8, 64}).requires_grad_();
  const auto [y, scale, zero] = fake_quantize(x, kFourOverSix);
  y.sum().backward();
  const at::Tensor u = (x.detach() / scale.repeat_interleave(16, 1)).abs();
  EXPECT_TRUE(at::equal(x.grad() == 1, u <= 7.0f));
}

TEST(FourOverSix, IsARuleOfE2M1UnderAnOuterScale) {
  for (const char* text : {"minmax fp6_e2m3 1x16 e4m3_four_over_six*float32@-1x-1",
                           "minmax fp4_e2m1 1x16 e4m3_four_over_six"})
    EXPECT_THROW(Quantizer::parse(text), c10::ValueError) << text;
  EXPECT_EQ(Quantizer::parse(kFourOverSix).text(), kFourOverSix);
}

// An asymmetric grid under outer scales has zero points.
TEST(ScaleSearch, AsymmetricGridsUnderOuterScalesHaveZeroPoints) {
  const at::Tensor x = at::rand({4, 64}) + 1.0;
  const std::string text = "minmax int4 asymmetric 1x32 e4m3*float32@-1x-1";
  const auto [scale, zero] = choose_qparams(x, text, "minmax");
  EXPECT_TRUE((zero == -8).all().item<bool>());
  // Half a step, and a sixteenth of the range by which an E4M3 scale may be too small.
  EXPECT_LT((rounded(x, text) - x).abs().max().item<float>(), 0.2f);
}

}  // namespace
}  // namespace qat
