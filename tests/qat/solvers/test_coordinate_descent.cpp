#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/artifact.h"
#include "qat/solvers/coordinate_descent.h"
#include "qat/solvers/gptq.h"
#include "tests/qat/group_spec.h"

namespace qat {
namespace {

at::Tensor second_moments(int64_t features) {
  const at::Tensor x = at::mm(at::randn({1000, features}), at::randn({features, features}));
  return at::mm(x.t(), x) / 1000.0;
}

// Of one scale, so that codes are the weight in units of it.
struct Problem {
  int64_t rows, cols;
  at::Tensor weight = at::randn({rows, cols}), hessian = second_moments(cols);
  float scale = 0.25f;

  solvers::Assignment nearest() const {
    const at::Tensor codes = weight.div(scale).round().clamp(-8, 7);
    return {codes.to(at::kChar), weight - codes * scale, at::zeros_like(weight)};
  }
  solvers::CoordinateDescent descent(const std::optional<at::Tensor>& outputs = std::nullopt,
                                     int64_t together = 8) const {
    const QuantSpec spec = group_spec(4, cols);
    const std::string text = quantizer_of(spec, 4, Quantizer::Mode::fixed).text();
    return {hessian,
            outputs,
            together,
            text,
            at::full_like(weight, scale),
            at::zeros({rows, cols}, at::kChar)};
  }
  double cost(const at::Tensor& error, const at::Tensor& outputs) const {
    const at::Tensor e = error.to(at::kDouble);
    return at::mm(at::mm(outputs.to(at::kDouble), e), hessian.to(at::kDouble))
        .mul(e)
        .sum()
        .item<double>();
  }
};

TEST(CoordinateDescent, LowersTheErrorUntilNothingMoves) {
  at::manual_seed(0);
  // More columns than are treated together.
  const Problem problem{.rows = 12, .cols = 150};
  const auto descent = problem.descent();
  solvers::Assignment found = problem.nearest();
  double last = problem.cost(found.error, at::eye(12));
  const double begun = last;
  int passes = 0;
  for (; passes < 500 && descent.pass(problem.weight, found); ++passes) {
    const double cost = problem.cost(found.error, at::eye(12));
    EXPECT_LE(cost, last * (1 + 1e-6));
    last = cost;
  }
  EXPECT_LT(passes, 500);
  EXPECT_LT(last, 0.7 * begun);
  EXPECT_TRUE(at::allclose(found.error, problem.weight - found.codes * problem.scale, 0, 1e-5));
}

TEST(CoordinateDescent, RowsThatMoveAtOnceMakeNothingWorse) {
  at::manual_seed(1);
  const Problem problem{.rows = 20, .cols = 40};
  // Rows that are nearly the same: what each should do for all, only one of them may do.
  const at::Tensor outputs = at::ones({20, 20}) + 0.05 * at::eye(20);
  for (const int64_t together : {1, 8, 20}) {
    const auto descent = problem.descent(outputs, together);
    solvers::Assignment found = problem.nearest();
    double last = problem.cost(found.error, outputs);
    const double begun = last;
    for (int pass = 0; pass < 5; ++pass) {
      descent.pass(problem.weight, found);
      const double cost = problem.cost(found.error, outputs);
      EXPECT_LE(cost, last * (1 + 1e-5));
      last = cost;
    }
    EXPECT_LT(last, 0.5 * begun) << together;
  }
}

TEST(Gptq, PassesThatFollowLowerTheLoss) {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({16, 96}), hessian = second_moments(96);
  const auto loss = [&](int64_t sweeps) {
    return solvers::gptq(weight, hessian, group_spec(3, 32), 3, {.sweeps = sweeps}).loss;
  };
  EXPECT_LT(loss(4), 0.99 * loss(0));
}

}  // namespace
}  // namespace qat
