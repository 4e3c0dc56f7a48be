#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <random>

#include "qat/ops/exponential.h"
#include "qat/ops/kl_divergence.h"

namespace qat {
namespace {

constexpr double kHalfStep = 1.0 / (1 << 22);

TEST(Exponential, IsWithinAFewBitsOfItself) {
  std::mt19937 random(0);
  std::uniform_real_distribution<float> draw(-87.0f, 0.0f);
  for (int i = 0; i < 1000000; ++i) {
    const float x = i % 2 ? draw(random) : draw(random) / 87.0f;
    const double exact = std::exp(static_cast<double>(x));
    ASSERT_NEAR(exponential(x) / exact, 1.0, kHalfStep) << x;
  }
}

TEST(Exponential, AtItsEnds) {
  EXPECT_EQ(exponential(0.0f), 1.0f);
  EXPECT_EQ(exponential(-0.0f), 1.0f);
  EXPECT_GT(exponential(-87.0f), 0.0f);
  EXPECT_EQ(exponential(-88.0f), 0.0f);
  EXPECT_EQ(exponential(-INFINITY), 0.0f);
  EXPECT_TRUE(std::isnan(exponential(NAN)));
}

// Of sums of exponentials: from 1, the largest, to as many as there are choices.
TEST(Logarithm, IsWithinThreeStepsOfItself) {
  std::mt19937_64 random(0);
  std::uniform_real_distribution<double> draw(0.0, 1.0);
  for (int i = 0; i < 1000000; ++i) {
    const double x = i % 2 ? 1.0 + draw(random) : std::exp2(200.0 * draw(random) - 100.0);
    const long double exact = std::log(static_cast<long double>(x));
    const double step = std::ldexp(1.0, std::ilogb(static_cast<double>(exact)) - 52);
    ASSERT_LE(std::fabs(static_cast<double>(logarithm(x) - exact)), 3 * step) << x;
  }
  EXPECT_EQ(logarithm(1.0), 0.0);
  EXPECT_TRUE(std::isnan(logarithm(NAN)));
}

// The formula in float64.
at::Tensor formula(const at::Tensor& student, const at::Tensor& teacher, double temperature) {
  const at::Tensor p = at::softmax(teacher.to(at::kDouble) / temperature, -1);
  const at::Tensor log_p = at::log_softmax(teacher.to(at::kDouble) / temperature, -1);
  const at::Tensor log_r = at::log_softmax(student.to(at::kDouble) / temperature, -1);
  return (p * (log_p - log_r)).sum(-1);
}

class KlDivergence : public testing::TestWithParam<int64_t> {
 protected:
  KlDivergence() {
    at::manual_seed(0);
    student = at::randn({3, 5, GetParam()}) * 3;
    teacher = student + at::randn({3, 5, GetParam()}) * 0.1;
  }
  at::Tensor student, teacher;
};

// An exponent is rounded three times, by 2^-24 of itself each; so are two probabilities.
TEST_P(KlDivergence, IsTheFormula) {
  for (const double temperature : {1.0, 2.0, 0.7}) {
    const auto [kl, gradient] =
        kl_divergence(student, teacher, temperature, {}, at::full({}, 0.5, at::kFloat));
    EXPECT_LT((kl - formula(student, teacher, temperature)).abs().max().item<double>(), 1e-6);
    const at::Tensor r = at::softmax(student.to(at::kDouble) / temperature, -1),
                     p = at::softmax(teacher.to(at::kDouble) / temperature, -1);
    const at::Tensor off = gradient - 0.5 / temperature * (r - p);
    const at::Tensor step =
        at::maximum(r, p) * (2 - at::minimum(r, p).log()) * std::ldexp(1.0, -23);
    EXPECT_LT((off / step).abs().max().item<double>(), 1.0 / temperature);
  }
}

TEST_P(KlDivergence, OfTheSameLogitsIsNothing) {
  const auto [kl, gradient] = kl_divergence(student, student, 1.0, {}, at::ones({}));
  EXPECT_EQ(kl.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(gradient.count_nonzero().item<int64_t>(), 0);
}

TEST_P(KlDivergence, TokensThatDoNotCountAreNothing) {
  at::Tensor broken = student.clone();
  broken.select(1, 2).fill_(NAN);
  at::Tensor counted = at::ones({3, 5}, at::kBool);
  counted.select(1, 2).fill_(false);
  const auto [kl, gradient] = kl_divergence(broken, teacher, 1.0, counted, at::ones({}));
  const auto [all, whole] = kl_divergence(student, teacher, 1.0, {}, at::ones({}));
  EXPECT_TRUE(at::equal(kl, all.where(counted, 0.0)));
  EXPECT_TRUE(at::equal(gradient, whole.where(counted.unsqueeze(-1), 0.0)));
}

INSTANTIATE_TEST_SUITE_P(Choices, KlDivergence, testing::Values(1, 2, 33, 1024, 1025, 9000, 49152));

TEST(KlDivergence, WhatIsNotFiniteShows) {
  const float far = -INFINITY;
  const at::Tensor teacher = at::tensor({1.0f, 2.0f, far, 0.0f}).reshape({1, 4});
  const at::Tensor student = at::tensor({0.5f, 2.0f, far, 1.0f}).reshape({1, 4});
  const auto short_of = [](const at::Tensor& x) {
    return x.index_select(1, at::tensor({0, 1, 3}));
  };
  // A choice that both rule out is none.
  const at::Tensor kl = std::get<0>(kl_divergence(student, teacher));
  EXPECT_NEAR(kl.item<float>(),
              std::get<0>(kl_divergence(short_of(student), short_of(teacher))).item<float>(), 1e-7);
  // One that the student alone rules out is infinitely far; the teacher alone may.
  EXPECT_TRUE(
      std::isinf(std::get<0>(kl_divergence(student, teacher.nan_to_num(0, 0, 0))).item<float>()));
  EXPECT_TRUE(std::isfinite(
      std::get<0>(kl_divergence(student.nan_to_num(0, 0, 0), teacher)).item<float>()));
  for (const float value : {NAN, INFINITY}) {
    at::Tensor broken = student.clone();
    broken[0][1] = value;
    for (const at::Tensor& found :
         {std::get<0>(kl_divergence(broken, teacher)), std::get<0>(kl_divergence(teacher, broken)),
          std::get<1>(kl_divergence(broken, teacher, 1.0, {}, at::ones({})))})
      EXPECT_TRUE(found.isnan().all().item<bool>()) << value;
  }
}

TEST(ForwardKl, IsTheMeanOfTokensThatCount) {
  at::manual_seed(0);
  const at::Tensor student = at::randn({2, 7, 50}).requires_grad_(),
                   teacher = at::randn({2, 7, 50});
  const at::Tensor counted = at::rand({2, 7}) < 0.5;
  const at::Tensor expected = formula(student, teacher, 2.0).masked_select(counted).mean() * 4;
  const at::Tensor loss = forward_kl(student, teacher, 2.0, counted);
  EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-6);
  EXPECT_EQ(forward_kl(student, teacher, 2.0, at::zeros_like(counted)).item<float>(), 0.0f);
  EXPECT_EQ(forward_kl(student.slice(0, 0, 0), teacher.slice(0, 0, 0)).item<float>(), 0.0f);
}

TEST(ForwardKl, IsDifferentiableAsOftenAsItsGraphIsKept) {
  at::manual_seed(0);
  const at::Tensor teacher = at::randn({2, 7, 50});
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    at::Tensor student = at::randn({2, 7, 50}).to(dtype).requires_grad_();
    const at::Tensor loss = forward_kl(student, teacher, 2.0);
    (loss * 3).backward({}, /*retain_graph=*/true);
    const at::Tensor first = student.grad().clone();
    student.mutable_grad().reset();
    (loss * 3).backward();
    EXPECT_TRUE(at::allclose(first, student.grad(), 1e-2, 1e-6));  // a factor is rounded elsewhere
    at::Tensor exact = student.detach().to(at::kDouble).requires_grad_();
    (formula(exact, teacher, 2.0).mean() * 12).backward();
    const double most = exact.grad().abs().max().item<double>();
    EXPECT_TRUE(at::allclose(student.grad().to(at::kDouble), exact.grad(), 1e-2, 1e-2 * most));
    EXPECT_EQ(student.grad().scalar_type(), dtype);
  }
}

TEST(ForwardKl, ASecondDerivativeIsRefusedWhereItIsAskedFor) {
  at::manual_seed(0);
  for (const auto dtype : {at::kFloat, at::kHalf}) {
    const at::Tensor student = at::randn({2, 7}).to(dtype).requires_grad_(),
                     other = at::randn({7}).requires_grad_();
    const at::Tensor loss = forward_kl(student, at::randn({2, 7})) + other.pow(3).sum();
    const auto slopes = torch::autograd::grad({loss}, {student, other}, {}, true, true);
    EXPECT_TRUE(at::equal(slopes[0], torch::autograd::grad({loss}, {student}, {}, true)[0]));
    const at::Tensor second = torch::autograd::grad({slopes[1].sum()}, {other}, {}, true)[0];
    EXPECT_TRUE(at::allclose(second, 6 * other));
    EXPECT_THROW(torch::autograd::grad({slopes[0].sum()}, {student}), c10::NotImplementedError);
    const auto slope = torch::autograd::grad({loss.square()}, {student}, {}, {}, true)[0];
    EXPECT_THROW(torch::autograd::grad({slope.sum()}, {student}), c10::NotImplementedError);
  }
}

TEST(KlDivergence, WhatItCannotTakeIsRefused) {
  const at::Tensor x = at::zeros({2, 4});
  EXPECT_THROW(kl_divergence(x.to(at::kDouble), x), c10::TypeError);
  EXPECT_THROW(kl_divergence(x, at::zeros({2, 3})), c10::ValueError);
  for (const double temperature : {0.0, -1.0, 1e-40, 1e40, static_cast<double>(NAN)}) {
    EXPECT_THROW(kl_divergence(x, x, temperature), c10::ValueError) << temperature;
    EXPECT_THROW(forward_kl(x, x, temperature), c10::ValueError) << temperature;
  }
  EXPECT_THROW(kl_divergence(x, x, 1.0, at::zeros({2})), c10::ValueError);
  EXPECT_THROW(kl_divergence(x, x, 1.0, at::ones({3}, at::kBool)), c10::ValueError);
  EXPECT_THROW(kl_divergence(x, x, 1.0, {}, at::ones({1})), c10::ValueError);
}

}  // namespace
}  // namespace qat
