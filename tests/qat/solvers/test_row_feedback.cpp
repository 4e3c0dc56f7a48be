#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/solvers/gptq.h"
#include "qat/solvers/row_feedback.h"
#include "tests/qat/group_spec.h"
#include "tests/qat/message_of.h"

namespace qat {
namespace {

// Of gradients in few directions, of very different size.
at::Tensor output_hessian(int64_t rows) {
  const at::Tensor mix = at::randn({rows, rows}) * at::rand({rows}).pow(3);
  const at::Tensor gradients = at::mm(at::randn({1000, rows}), mix);
  return at::mm(gradients.t(), gradients) / 1000.0;
}

TEST(RowFeedback, MovesRowsToWhereTheErrorsOfTheOthersCostLeast) {
  at::manual_seed(0);
  const at::Tensor hessian = output_hessian(24), missed = at::randn({24, 5});
  const solvers::RowFeedback feedback(hessian, 0.1, 1);
  at::Tensor damped = hessian.to(at::kDouble);
  damped.diagonal().add_(0.1 * damped.diagonal().mean());
  damped = damped.index_select(0, feedback.order()).index_select(1, feedback.order());
  // Of all rows from 8 on, by the normal equations; the first 8 of those are what is asked for.
  const at::Tensor wanted = at::linalg_solve(damped.slice(0, 8).slice(1, 8),
                                             at::mm(damped.slice(0, 8).slice(1, 0, 8),
                                                    missed.slice(0, 0, 8).to(at::kDouble)))
                                .slice(0, 0, 8);
  EXPECT_TRUE(at::allclose(feedback.asked(missed, 8, 16).to(at::kDouble), wanted, 1e-3, 1e-4));
}

TEST(RowFeedback, TakesWhatMattersMostFirstUnlessRowsShareAScale) {
  const at::Tensor hessian = at::tensor({1.0f, 3.0f, 2.0f}).diag();
  EXPECT_TRUE(
      at::equal(solvers::RowFeedback(hessian, 0.1, 1).order(), at::tensor({1, 2, 0}, at::kLong)));
  EXPECT_TRUE(
      at::equal(solvers::RowFeedback(hessian, 0.1, 3).order(), at::tensor({0, 1, 2}, at::kLong)));
  EXPECT_EQ(solvers::RowFeedback(hessian, 0.1, 1).step(), 8);
  EXPECT_EQ(solvers::RowFeedback(hessian, 0.1, 3).step(), 9);
}

TEST(Gptq, SaysWhatItDidAboutAHessianOfTheOutputThatIsNone) {
  at::manual_seed(0);
  const auto warning = [weight = at::randn({2, 8})](float apart) {
    const at::Tensor outputs = at::tensor({1.0f, apart, apart, 1.0f}).view({2, 2});
    return solvers::gptq(weight, at::eye(8), group_spec(4, 8), 4, {}, std::nullopt, {}, outputs)
        .warning;
  };
  EXPECT_EQ(warning(0.5f), "");
  EXPECT_EQ(warning(5.0f),
            "its output's Hessian is not positive definite, so damping was raised to 10.000000");
  EXPECT_EQ(warning(1e9f),
            "its output's Hessian is not positive definite, so its rows do not answer for each "
            "other");
}

TEST(Gptq, RowsThatHangTogetherMakeEachOthersErrorsGood) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({48, 96}), outputs = output_hessian(48);
  const at::Tensor tokens = at::mm(at::randn({500, 96}), at::randn({96, 96}) / 10.0);
  const at::Tensor hessian = at::mm(tokens.t(), tokens) / 500.0;
  const auto reaches = [&](const RoundedWeight& found) {
    const at::Tensor error = weight - found.weight;
    return (at::mm(outputs, at::mm(error, hessian)) * error).sum().item<double>();
  };
  const RoundedWeight alone = solvers::gptq(weight, hessian, group_spec(4, 32), 4);
  const RoundedWeight found =
      solvers::gptq(weight, hessian, group_spec(4, 32), 4, {}, std::nullopt, {}, outputs);
  EXPECT_LT(reaches(found), 0.75 * reaches(alone));
  EXPECT_GT(found.loss, alone.loss);
}

TEST(Gptq, RefusesAHessianOfTheOutputThatDoesNotFit) {
  const at::Tensor weight = at::randn({4, 8});
  const auto solve = [&](const at::Tensor& outputs) {
    return solvers::gptq(weight, at::eye(8), group_spec(4, 8), 4, {}, std::nullopt, {}, outputs);
  };
  EXPECT_EQ(message_of([&] { solve(at::eye(5)); }),
            "GPTQ needs a Hessian of the output, where one is given, of [out, out] for a weight "
            "[out, in], but their shapes do not agree.");
  EXPECT_EQ(message_of([&] { solve(at::full({4, 4}, NAN)); }),
            "GPTQ needs a finite Hessian of the output, but it has NaN or infinite elements.");
}

}  // namespace
}  // namespace qat
