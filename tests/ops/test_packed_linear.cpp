#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "qat/ops/packed_linear.h"
#include "qat/ops/quantize.h"
#include "tests/ops/peak_memory.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

struct Case {
  int64_t out, in, group;
  int64_t bits;
  bool zero_point;
};

const std::vector<Case> kCases{
    {64, 64, 32, 4, false}, {70, 96, 32, 4, true}, {33, 100, 20, 4, true},   {16, 50, 50, 8, false},
    {130, 64, 16, 8, true}, {1, 9, 3, 4, true},    {200, 256, 128, 4, false}};

struct Weight {
  at::Tensor codes, scale, panels, scales;
  std::optional<at::Tensor> zero_point, zeros;
  explicit Weight(const Case& c) {
    const int64_t groups = c.in / c.group, top = c.bits == 4 ? 8 : 128;
    codes = at::randint(-top, top, {c.out, c.in}, at::kChar);
    scale = at::rand({c.out, groups}).add(0.5).to(at::kBFloat16);
    panels = pack_panels(codes, c.bits, c.group);
    scales = pack_panel_values(scale);
    if (!c.zero_point) return;
    zero_point = at::randint(-top, top, {c.out, groups}, at::kChar);
    zeros = pack_panel_values(*zero_point);
  }
  at::Tensor dequantized(const Case& c) const {
    return dequantize(codes, scale.to(at::kFloat), zero_point, {1, c.group}, at::kFloat);
  }
  at::Tensor multiply(const Case& c, const at::Tensor& x,
                      const std::optional<at::Tensor>& bias = std::nullopt) const {
    return packed_linear(x, panels, scales, zeros, bias, c.bits, c.group, c.out);
  }
};

// numerics.md (35): how far the result may be from the exact product with the dequantized weight.
TEST(PackedLinear, StaysWithinItsBoundOfDequantizingFirst) {
  for (const Case& c : kCases)
    for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16})
      for (const int64_t rows : {1, 2, 3, 5, 8, 17, 70}) {
        const Weight weight(c);
        const at::Tensor x = at::randn({rows, c.in}).to(dtype);
        const at::Tensor found = weight.multiply(c, x).to(at::kDouble);
        const at::Tensor w = weight.dequantized(c).to(at::kDouble), wide = x.to(at::kDouble);
        const at::Tensor exact = at::mm(wide, w.t());
        // With zero points, codes and their sums are subtracted from each other after they are
        // summed.
        at::Tensor magnitude = w.abs();
        if (weight.zero_point) {
          const at::Tensor s = weight.scale.to(at::kDouble).repeat_interleave(c.group, 1);
          const at::Tensor z =
              weight.zero_point->to(at::kDouble).abs().repeat_interleave(c.group, 1);
          magnitude = (weight.codes.to(at::kDouble).abs() + z) * s;
        }
        const at::Tensor size = at::mm(wide.abs(), magnitude.t());
        const double n = static_cast<double>(c.in) + 8, unit = std::ldexp(1.0, -24);
        const double last =
            dtype == at::kFloat ? 0.0 : std::ldexp(1.0, dtype == at::kHalf ? -11 : -8);
        const at::Tensor bound = size * (n * unit) + exact.abs() * last + 1e-12;
        EXPECT_TRUE(((found - exact).abs() <= bound).all().item<bool>())
            << c.out << "x" << c.in << " " << c.bits << " bits, " << rows << " rows, " << dtype;
      }
}

TEST(PackedLinear, IsExactWhereEverythingIs) {
  const Case c{48, 64, 16, 4, true};
  Weight weight(c);
  weight.scale = at::full_like(weight.scale, 0.5);
  weight.scales = pack_panel_values(weight.scale);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randint(-3, 4, {9, c.in}).to(dtype),
                     bias = at::randint(-9, 9, {c.out}).to(dtype);
    const at::Tensor exact =
        at::addmm(bias.to(at::kFloat), x.to(at::kFloat), weight.dequantized(c).t());
    EXPECT_TRUE(at::equal(weight.multiply(c, x, bias), exact.to(dtype)));
  }
}

TEST(PackedLinear, ARowDoesNotDependOnItsBatch) {
  const Case c{96, 128, 32, 4, true};
  const Weight weight(c);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({61, c.in}).to(dtype), all = weight.multiply(c, x);
    for (const int64_t row : {0, 7, 60})
      EXPECT_TRUE(at::equal(weight.multiply(c, x[row]), all[row]));
  }
}

TEST(PackedLinear, TakesAnyShapeOfInput) {
  const Case c{20, 24, 8, 4, false};
  const Weight weight(c);
  const at::Tensor x = at::randn({2, 3, 24});
  EXPECT_TRUE(at::equal(weight.multiply(c, x).view({6, 20}), weight.multiply(c, x.view({6, 24}))));
  EXPECT_EQ(weight.multiply(c, at::empty({0, 24})).sizes(), at::IntArrayRef({0, 20}));
  EXPECT_TRUE(at::equal(weight.multiply(c, x.transpose(0, 1)),
                        weight.multiply(c, x.transpose(0, 1).contiguous())));
}

TEST(PackedLinear, RefusesWhatDoesNotFit) {
  const Case c{20, 24, 8, 4, false};
  const Weight weight(c);
  EXPECT_THROW(weight.multiply(c, at::randn({2, 23})), c10::ValueError);
  EXPECT_THROW(weight.multiply(c, at::randn({2, 32})), c10::ValueError);
  EXPECT_THROW(weight.multiply(c, at::randn({2, 24}).to(at::kDouble)), c10::TypeError);
  EXPECT_THROW(packed_linear(at::randn({2, 24}), weight.panels, weight.scales, {}, at::randn({19}),
                             4, 8, 20),
               c10::ValueError);
  EXPECT_THROW(packed_linear(at::randn({2, 24}), weight.panels, weight.scales, {}, {}, 3, 8, 20),
               c10::ValueError);
  EXPECT_THROW(
      packed_linear(at::randn({2, 24}), weight.panels, weight.scales.slice(1, 1), {}, {}, 4, 8, 20),
      c10::ValueError);
}

TEST(Panels, GiveTheirCodesBack) {
  for (const Case& c : kCases) {
    const Weight weight(c);
    EXPECT_TRUE(
        at::equal(unpack_panels(weight.panels, c.bits, c.group, c.out, c.in), weight.codes));
    EXPECT_TRUE(at::equal(unpack_panel_values(weight.scales, c.out), weight.scale));
  }
}

TEST(Panels, HoldTheFirstCodesOfARowInItsFirstWord) {
  at::Tensor codes = at::zeros({2, 8}, at::kChar);
  for (int i = 0; i < 8; ++i) codes[1][i] = i - 4;
  const at::Tensor panels = pack_panels(codes, 4, 8);
  EXPECT_EQ(panels.sizes(), at::IntArrayRef({1, 1, 16}));
  // From the lowest bit: codes 0, 2, 4, 6, then 1, 3, 5, 7.
  EXPECT_EQ(static_cast<uint32_t>(panels[0][0][1].item<int32_t>()), 0x31fd20ecu);
  EXPECT_EQ(panels[0][0][0].item<int32_t>(), 0);
  EXPECT_THROW(pack_panels(codes, 5, 8), c10::ValueError);
  EXPECT_THROW(pack_panels(codes, 4, 3), c10::ValueError);
}

TEST(PackedLinear, RefusesWhatWouldLoseItsGradient) {
  const Case c{20, 24, 8, 4, false};
  const Weight weight(c);
  const at::Tensor x = at::randn({2, 24}).requires_grad_();
  for (const at::Device device : {at::Device(at::kCPU), other_device(), at::Device(at::kMeta)}) {
    const auto run = [&] {
      return packed_linear(x.to(device), weight.panels.to(device), weight.scales.to(device), {}, {},
                           4, 8, 20);
    };
    EXPECT_THROW(run(), c10::NotImplementedError) << device;
  }
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(weight.multiply(c, x).requires_grad());
}

TEST(PackedLinear, RunsOnACpuAlone) {
  const Case c{20, 24, 8, 4, false};
  const Weight weight(c);
  EXPECT_THROW(
      packed_linear(at::randn({2, 24}).to(other_device()), weight.panels.to(other_device()),
                    weight.scales.to(other_device()), {}, {}, 4, 8, 20),
      c10::NotImplementedError);
  EXPECT_THROW(weight.multiply(c, at::randn({2, 24}).to(other_device())), c10::NotImplementedError);
}

TEST(Panels, ArePackedWhereTheirCodesAre) {
  for (const Case& c : kCases) {
    const Weight weight(c);
    const at::Tensor panels = pack_panels(weight.codes.to(other_device()), c.bits, c.group);
    EXPECT_TRUE(at::equal(panels.cpu(), weight.panels));
    EXPECT_TRUE(at::equal(unpack_panels(panels, c.bits, c.group, c.out, c.in).cpu(), weight.codes));
    EXPECT_TRUE(at::equal(pack_panel_values(weight.scale.to(other_device())).cpu(), weight.scales));
  }
}

TEST(Panels, TakeNoMoreThanTheirCodesAndWords) {
  const at::Tensor values = at::randint(-8, 8, {256, 4096}, at::kChar);
  const int64_t peak = peak_memory([&] { return pack_panels(values, 4, 32); });
  EXPECT_GT(peak, 0);
  EXPECT_LE(peak, 3 * values.numel());
}

}  // namespace
}  // namespace qat
