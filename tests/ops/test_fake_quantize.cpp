#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "qat/ops/fake_quantize.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

at::Tensor scales(std::vector<float> values, at::IntArrayRef shape) {
  return at::tensor(values).view(shape);
}

TEST(FakeQuantize, RoundsToTheNearestLevelOfEachGroup) {
  const at::Tensor x = at::tensor({0.26f, 9.0f, -0.26f, 1.0f}).view({1, 4});
  const at::Tensor y = rounded(x, text("fixed", 4, "full", {1, 2}), scales({0.5f, 1.0f}, {1, 2}));
  EXPECT_TRUE(at::equal(y, at::tensor({0.5f, 3.5f, 0.0f, 1.0f}).view({1, 4})));
}

TEST(FakeQuantize, AppliesTheZeroPoint) {
  const at::Tensor x = at::tensor({-3.0f, 20.0f}).view({1, 2});
  const at::Tensor zero_point = at::full({1, 1}, 3, at::kChar);
  const at::Tensor y =
      rounded(x, text("fixed", 4, "asymmetric", {-1, -1}), scales({1.0f}, {1, 1}), zero_point);
  EXPECT_TRUE(at::equal(y, at::tensor({-3.0f, 4.0f}).view({1, 2})));
}

TEST(FakeQuantize, AcceptsEveryGranularityAndDtype) {
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const std::vector<int64_t>& block :
         std::vector<std::vector<int64_t>>{{-1, -1}, {1, -1}, {1, 4}, {2, 4}, {3, 5}}) {
      const at::Tensor x = at::randn({6, 10}).to(dtype);
      const int64_t rows = block[0] == -1 ? 1 : (6 + block[0] - 1) / block[0];
      const int64_t cols = block[1] == -1 ? 1 : (10 + block[1] - 1) / block[1];
      const at::Tensor y =
          rounded(x, text("fixed", 4, "full", block), at::full({rows, cols}, 0.25f));
      const at::Tensor expected =
          (x.to(at::kFloat) / 0.25).round().clamp(-8, 7).mul(0.25).to(dtype);
      EXPECT_TRUE(at::equal(y, expected)) << dtype << " " << block;
    }
}

TEST(FakeQuantize, ReadsPermutedTensors) {
  const at::Tensor x = at::randn({8, 4}).t();
  const at::Tensor scale = at::rand({4, 1}) + 0.1;
  EXPECT_TRUE(at::equal(rounded(x, text("fixed", 4, "full", {1, -1}), scale),
                        rounded(x.contiguous(), text("fixed", 4, "full", {1, -1}), scale)));
}

TEST(FakeQuantize, AnEmptyTensorStaysEmpty) {
  EXPECT_EQ(
      rounded(at::empty({0, 4}), text("fixed", 4, "full", {1, -1}), at::empty({0, 1})).numel(), 0);
}

TEST(FakeQuantize, PassesGradientsInsideTheRangeOnly) {
  const at::Tensor x = at::tensor({0.3f, 9.0f}).view({1, 2}).requires_grad_(true);
  rounded(x, text("fixed", 4, "full", {-1, -1}), at::ones({1, 1})).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::tensor({1.0f, 0.0f}).view({1, 2})));
}

// One that nobody else sees: what (4) leaves of it lies where it was.
TEST(FakeQuantize, WritesOverAGradientThatIsItsAlone) {
  const at::Tensor x = at::randn({64, 64}).mul(8).requires_grad_(true), w = at::randn({64, 8});
  const std::string quantizer = text("fixed", 4, "full", {-1, -1});
  const at::Tensor inside = x.detach().ge(-8.5).logical_and(x.detach().le(7.5));
  for (const bool views : {false, true}) {
    x.mutable_grad() = at::Tensor();
    at::Tensor y = rounded(x, quantizer, at::ones({1, 1}));
    const void* came = nullptr;
    y.register_hook([&came](const at::Tensor& grad) { came = grad.data_ptr(); });
    if (views) y = y.view({1, 64, 64}).view({64, 64});
    at::mm(y, w).sum().backward();
    EXPECT_EQ(x.grad().data_ptr(), came);
    EXPECT_TRUE(at::equal(x.grad(), w.sum(1).expand({64, 64}).mul(inside)));
  }
}

TEST(FakeQuantize, LeavesAGradientThatOthersSee) {
  const at::Tensor x = at::randn({64, 64}).mul(8).requires_grad_(true), w = at::randn({64, 8});
  const std::string quantizer = text("fixed", 4, "full", {-1, -1});
  const at::Tensor whole = w.sum(1).expand({64, 64});
  const auto backward = [&](const std::function<at::Tensor(const at::Tensor&)>& sum_of) {
    x.mutable_grad() = at::Tensor();
    sum_of(rounded(x, quantizer, at::ones({1, 1}))).backward();
    return x.grad().eq(0).any().item<bool>();  // something was clipped
  };
  at::Tensor seen;
  EXPECT_TRUE(backward([&](const at::Tensor& y) {
    y.register_hook([&seen](const at::Tensor& grad) { seen = grad; });
    return at::mm(y, w).sum();
  }));
  EXPECT_TRUE(at::equal(seen, whole));
  EXPECT_TRUE(backward([&](const at::Tensor& y) {  // of which the gradient of y is a view
    const at::Tensor flat = y.view({-1});
    flat.register_hook([&seen](const at::Tensor& grad) { seen = grad; });
    return at::mm(flat.view({64, 64}), w).sum();
  }));
  EXPECT_TRUE(at::equal(seen, whole.reshape({-1})));
  EXPECT_TRUE(backward([&](const at::Tensor& y) {  // for both, and expanded
    return y.sum() + y.view({-1}).sum();
  }));
  const at::Tensor given = at::ones({64, 64});
  x.mutable_grad() = at::Tensor();
  rounded(x, quantizer, at::ones({1, 1})).backward(given);
  EXPECT_TRUE(at::equal(given, at::ones({64, 64})));
}

TEST(FakeQuantize, RefusesBadArgumentsWithASentence) {
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  const at::Tensor x = at::zeros({2, 4}), s = at::ones({2, 1});
  const std::string fixed = text("fixed", 4, "full", {1, -1});
  EXPECT_EQ(message([&] { fake_quantize(x.to(at::kDouble), fixed, s); }),
            "[fake_quantize] x must be float32, float16 or bfloat16, but is Double.");
  EXPECT_EQ(message([&] { fake_quantize(x, fixed); }),
            "[fake_quantize] scale must be given for fixed int4 full 1x-1 float32.");
  EXPECT_EQ(
      message([&] { fake_quantize(x, fixed, at::ones({1, 1})); }),
      "[fake_quantize] scale must have shape [2, 1], one entry per block of x, but has [1, 1].");
  EXPECT_EQ(
      message([&] { fake_quantize(x, "fixed int4 full 0x-1 float32", s); }),
      "[quantizer] block sides must be 1 to 2^48, or -1 for the whole axis, but are [0, -1].");
  EXPECT_EQ(message([&] { fake_quantize(x, fixed, s, at::zeros({2, 1})); }),
            "[fake_quantize] zero_point must be Char, but is Float.");
  EXPECT_EQ(message([&] { fake_quantize(x, fixed, s, std::nullopt, at::ones({1, 1})); }),
            "[fake_quantize] outer_scale must not be given for fixed int4 full 1x-1 float32.");
}

}  // namespace
}  // namespace qat
