#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/quantize_with_feedback.h"

namespace qat {
namespace {

TEST(QuantizeWithFeedback, EachColumnGetsTheErrorsOfThoseBeforeIt) {
  // 0.4 rounds to 0 and hands its error on whole; 0.4 + 0.4 rounds to 1.
  const at::Tensor weight = at::full({1, 2}, 0.4), one = at::ones({1, 1});
  const at::Tensor transfer = at::tensor({1.0f, 1.0f, 0.0f, 1.0f}).view({2, 2});
  const auto [codes, error, residual] =
      quantize_with_feedback(weight, "fixed int4 full 1x-1 float32", at::zeros({1, 2}), transfer,
                             one, at::zeros({1, 1}, at::kChar));
  EXPECT_TRUE(at::equal(codes, at::tensor({0, 1}, at::kChar).view({1, 2})));
  EXPECT_TRUE(at::allclose(error, at::tensor({0.4f, -0.6f}).view({1, 2})));
  EXPECT_TRUE(at::allclose(residual, at::tensor({0.4f, -0.2f}).view({1, 2})));
}

TEST(QuantizeWithFeedback, AScaleAColumnAndOffsets) {
  const at::Tensor weight = at::tensor({1.0f, 1.0f}).view({1, 2});
  const auto [codes, error, residual] = quantize_with_feedback(
      weight, "fixed int4 full 1x-1 float32", at::tensor({0.0f, 2.0f}).view({1, 2}), at::eye(2),
      at::tensor({1.0f, 0.5f}).view({1, 2}), at::tensor({0, 1}, at::kChar).view({1, 2}));
  EXPECT_TRUE(at::equal(codes, at::tensor({1, 7}, at::kChar).view({1, 2})));
  EXPECT_TRUE(at::equal(error, at::tensor({0.0f, -2.0f}).view({1, 2})));
  EXPECT_TRUE(at::equal(residual, at::zeros({1, 2})));
}

TEST(QuantizeWithFeedback, RowsThatDoNotFillAVectorAndNone) {
  for (const int64_t rows : {0, 1, 17}) {
    const auto [codes, error, residual] = quantize_with_feedback(
        at::randn({rows, 5}), "fixed int4 full 1x-1 float32", at::zeros({rows, 5}), at::eye(5),
        at::ones({rows, 1}), at::zeros({rows, 1}, at::kChar));
    EXPECT_EQ(codes.size(0), rows);
    EXPECT_TRUE(at::allclose(error, residual));
  }
}

TEST(QuantizeWithFeedback, RefusesWhatDoesNotFit) {
  const at::Tensor weight = at::ones({2, 3}), scale = at::ones({2, 1}),
                   zero = at::zeros({2, 1}, at::kChar);
  const auto call = [&](const at::Tensor& transfer, const at::Tensor& scales) {
    quantize_with_feedback(weight, "fixed int4 full 1x-1 float32", weight, transfer, scales, zero);
  };
  EXPECT_THROW(call(at::eye(2), scale), c10::ValueError);
  EXPECT_THROW(call(at::eye(3), at::ones({3, 1})), c10::ValueError);
  EXPECT_THROW(call(at::eye(3).to(at::kDouble), scale), c10::TypeError);
}

}  // namespace
}  // namespace qat
