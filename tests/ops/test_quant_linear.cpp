#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/kept_memory.h"
#include "qat/ops/quant_linear.h"
#include "qat/ops/quantizer.h"
#include "tests/ops/quantizer_text.h"

namespace qat {
namespace {

const std::string kWeight = "minmax int4 full 1x32 bfloat16";
const std::string kInput = "minmax int8 narrow 1x-1 float32";

at::Tensor apply(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                 at::TensorList kept = {}) {
  return quant_linear(x, weight, bias, std::nullopt, std::nullopt, std::nullopt, std::nullopt, kept,
                      kWeight, kInput);
}

TEST(QuantLinearOp, EqualsItsPartsForwardAndBackward) {
  const at::Tensor x = at::randn({2, 3, 64}).requires_grad_(true);
  const at::Tensor weight = at::randn({16, 64}).requires_grad_(true);
  const at::Tensor bias = at::randn({16}).requires_grad_(true);
  const at::Tensor expected = at::linear(
      rounded(x, kInput),
      std::get<0>(fake_quantize(weight, text("minmax", 4, "full", {1, 32}, at::kBFloat16))), bias);
  const at::Tensor gradient = at::randn_like(expected);
  expected.backward(gradient);
  const std::vector<at::Tensor> leaves{x, weight, bias};
  std::vector<at::Tensor> wanted;
  for (const at::Tensor& leaf : leaves) {
    wanted.push_back(leaf.grad().clone());
    leaf.mutable_grad().reset();
  }
  const Quantizer quantizer = Quantizer::parse(kWeight);
  const auto codes = quantizer.encoded(weight.detach(), {});
  for (const at::TensorList kept : {at::TensorList(), at::TensorList(codes)}) {
    const at::Tensor y = apply(x, weight, bias, kept);
    EXPECT_TRUE(at::equal(y, expected));
    y.backward(gradient);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(at::equal(leaves[i].grad(), wanted[i])) << i;
      leaves[i].mutable_grad().reset();
    }
  }
}

TEST(QuantLinearOp, LearnedParametersReceiveTheirGradients) {
  const at::Tensor x = at::randn({5, 64});
  const at::Tensor weight = at::randn({16, 64}).requires_grad_(true);
  const at::Tensor scale = at::full({16, 2}, 0.2f).requires_grad_(true);
  const at::Tensor zero = at::full({16, 2}, 0.4f).requires_grad_(true);
  at::linear(
      x, rounded(weight, text("learned", 4, "asymmetric", {1, 32}, at::kFloat, 0.5), scale, zero))
      .sum()
      .backward();
  const at::Tensor wanted = scale.grad().clone(), wanted_zero = zero.grad().clone();
  scale.mutable_grad().reset();
  zero.mutable_grad().reset();
  quant_linear(x, weight, std::nullopt, scale, zero, std::nullopt, std::nullopt, {},
               "learned int4 asymmetric 1x32 float32 0.5", "")
      .sum()
      .backward();
  EXPECT_TRUE(at::equal(scale.grad(), wanted));
  EXPECT_TRUE(at::equal(zero.grad(), wanted_zero));
  EXPECT_GT(wanted.abs().sum().item<float>(), 0.0f);
}

TEST(QuantLinearOp, TheRoundedWeightIsGoneWhenTheForwardReturns) {
  release_kept_memory();
  const at::Tensor x = at::randn({4, 1024}).requires_grad_(true);
  const at::Tensor weight = at::randn({1024, 1024}).requires_grad_(true);
  const at::Tensor y = apply(x, weight, at::Tensor());
  const int64_t one_weight = 4 * 1024 * 1024;
  EXPECT_EQ(kept_bytes(), one_weight);
  release_kept_memory();
  EXPECT_EQ(kept_bytes(), 0);
  y.sum().backward();
  EXPECT_EQ(most_kept_bytes(), one_weight);
}

// What a layer keeps comes from outside: a list of another form is refused, not read past its end.
TEST(QuantLinearOp, KeptTensorsOfAnotherFormAreRefused) {
  const at::Tensor x = at::randn({2, 64}), weight = at::randn({16, 64});
  const auto codes = Quantizer::parse(kWeight).encoded(weight, {});
  for (const std::vector<at::Tensor>& kept : {std::vector<at::Tensor>{codes[0]},
                                              {codes[0], codes[1]},
                                              {weight, codes[1]},
                                              {weight.slice(0, 0, 3)}})
    EXPECT_THROW(apply(x, weight, at::Tensor(), kept), c10::ValueError);
}

TEST(QuantLinearOp, AQuantizerWithoutItsScaleIsRefused) {
  for (const auto* quantizer :
       {"fixed int4 narrow 1x32 bfloat16", "learned int4 narrow 1x32 bfloat16"})
    EXPECT_THROW(quant_linear(at::ones({2, 64}), at::ones({4, 64}), std::nullopt, std::nullopt,
                              std::nullopt, std::nullopt, std::nullopt, {}, quantizer, ""),
                 c10::ValueError);
}

}  // namespace
}  // namespace qat
