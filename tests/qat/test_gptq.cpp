#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "ops/fake_quantize.h"
#include "qat/gptq.h"
#include "qat/input_statistics.h"
#include "tests/qat/group_spec.h"

namespace qat {
namespace {

// Inputs whose features are correlated and of different size.
at::Tensor tokens() {
  return at::mm(at::randn({500, 96}), at::randn({96, 96}) / 10.0) * at::arange(1, 97) / 50.0;
}

double objective(const at::Tensor& error, const at::Tensor& hessian) {
  const at::Tensor wide = error.to(at::kDouble);
  return (at::mm(wide, hessian.to(at::kDouble)) * wide).sum().item<double>();
}

TEST(Gptq, WorksWithoutPythonAndBeatsRoundingToNearest) {
  at::manual_seed(0);
  const at::Tensor weight = at::randn({24, 96});
  InputStatistics statistics(96);
  statistics.add(tokens());
  const at::Tensor hessian = statistics.hessian();
  GptqOptions off;
  off.order = ColumnOrder::plain;
  const RoundedWeight nearest = gptq(weight, at::eye(96), group_spec(4, 32), 4, off);
  for (const auto order : {ColumnOrder::plain, ColumnOrder::group, ColumnOrder::column}) {
    GptqOptions options;
    options.order = order;
    const RoundedWeight found = gptq(weight, hessian, group_spec(4, 32), 4, options);
    EXPECT_LT(objective(weight - found.weight, hessian),
              0.8 * objective(weight - nearest.weight, hessian));
    EXPECT_TRUE(at::equal(
        fake_quantize(found.weight, found.scale, found.zero_point, {1, 32}, -8, 7), found.weight));
  }
}

TEST(Gptq, TheSumOfSquaredErrorsIsTheErrorOfTheOutput) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({24, 96});
  InputStatistics statistics(96);
  statistics.add(tokens());
  at::Tensor damped = statistics.hessian();
  damped.diagonal().add_(0.01 * damped.diagonal().mean());
  const RoundedWeight found = gptq(weight, statistics.hessian(), group_spec(4, 32), 4);
  EXPECT_NEAR(found.loss / objective(weight - found.weight, damped), 1.0, 1e-5);
}

TEST(Gptq, NamesOfOrders) {
  for (const auto order : {ColumnOrder::plain, ColumnOrder::group, ColumnOrder::column})
    EXPECT_EQ(parse_column_order(name_of(order)), order);
  EXPECT_THROW(parse_column_order("best"), std::invalid_argument);
}

TEST(InputStatistics, AddsTokensOfAnyShapeAndIgnoresWhatIsNotFinite) {
  InputStatistics statistics(2);
  statistics.add(at::tensor({1.0f, 2.0f, 3.0f, NAN, 0.0f, -4.0f}).view({1, 3, 2}));
  EXPECT_EQ(statistics.tokens(), 2);
  EXPECT_EQ(statistics.ignored(), 1);
  EXPECT_TRUE(at::equal(statistics.hessian(), at::tensor({0.5f, 1.0f, 1.0f, 10.0f}).view({2, 2})));
  EXPECT_TRUE(at::equal(statistics.max_magnitude(), at::tensor({1.0f, 4.0f})));
  EXPECT_TRUE(at::equal(statistics.mean_magnitude(), at::tensor({0.5f, 3.0f})));
}

}  // namespace
}  // namespace qat
