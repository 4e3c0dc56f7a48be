#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/checks.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/quantize.h"
#include "qat/solvers/gptq.h"
#include "qat/solvers/input_statistics.h"
#include "tests/ops/quantizer_text.h"
#include "tests/qat/group_spec.h"
#include "tests/qat/message_of.h"

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
  const RoundedWeight nearest = solvers::gptq(weight, at::eye(96), group_spec(4, 32), 4, off);
  for (const auto order : {ColumnOrder::plain, ColumnOrder::group, ColumnOrder::column}) {
    GptqOptions options;
    options.order = order;
    const RoundedWeight found = solvers::gptq(weight, hessian, group_spec(4, 32), 4, options);
    EXPECT_LT(objective(weight - found.weight, hessian),
              0.8 * objective(weight - nearest.weight, hessian));
    EXPECT_TRUE(at::equal(rounded(found.weight, text("fixed", 4, "asymmetric", {1, 32}),
                                  found.scale, found.zero_point),
                          found.weight));
  }
}

TEST(Gptq, TheSumOfSquaredErrorsIsTheErrorOfTheOutput) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({24, 96});
  InputStatistics statistics(96);
  statistics.add(tokens());
  at::Tensor damped = statistics.hessian();
  damped.diagonal().add_(0.01 * damped.diagonal().mean());
  const RoundedWeight found = solvers::gptq(weight, statistics.hessian(), group_spec(4, 32), 4);
  EXPECT_NEAR(found.loss / objective(weight - found.weight, damped), 1.0, 1e-5);
}

TEST(Gptq, NamesOfOrders) {
  for (const auto order : {ColumnOrder::plain, ColumnOrder::group, ColumnOrder::column})
    EXPECT_EQ(parse_column_order(name_of(order)), order);
  EXPECT_EQ(message_of([] { parse_column_order("best"); }),
            "order must be plain, group or column, but is best.");
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

TEST(Gptq, RefusesWhatDoesNotFitTogether) {
  const at::Tensor weight = at::randn({4, 8}), hessian = at::eye(8);
  const QuantSpec spec = group_spec(4, 8);
  const auto solve = [&](const at::Tensor& w, const at::Tensor& h, GptqOptions options) {
    return solvers::gptq(w, h, spec, 4, options);
  };
  EXPECT_THROW(solve(weight, at::eye(7), {}), std::invalid_argument);
  EXPECT_THROW(solve(weight / 0.0, hessian, {}), std::invalid_argument);
  GptqOptions negative, corrects;
  negative.damping = -1.0;
  corrects.correction = 0.5;
  EXPECT_THROW(solve(weight, hessian, negative), std::invalid_argument);
  EXPECT_THROW(solve(weight, hessian, corrects), std::invalid_argument);
}

TEST(InputStatistics, RefusesOtherFeaturesAndAMissingFloatModel) {
  InputStatistics plain(4), with_drift(4, /*drift=*/true);
  EXPECT_THROW(plain.add(at::randn({2, 3})), std::invalid_argument);
  EXPECT_THROW(plain.add(at::scalar_tensor(1.0)), std::invalid_argument);
  EXPECT_THROW(with_drift.add(at::randn({2, 4})), std::invalid_argument);
  EXPECT_THROW(plain.add(at::randn({2, 4}), at::randn({2, 4})), std::invalid_argument);
  plain.add(at::full({2, 4}, NAN));
  EXPECT_EQ(plain.ignored(), 2);
  EXPECT_FALSE(plain.drift().has_value());
  with_drift.add(at::zeros({2, 4}), at::ones({2, 4}));
  EXPECT_TRUE(with_drift.drift().has_value());
}

// Whatever the order and the blocks, a short one at the end included, the weight lies on its grid
// and its output is nearer than that of rounding to nearest.
TEST(Gptq, EveryOrderRoundsOntoTheGrid) {
  const at::Tensor x = tokens().slice(1, 0, 40), weight = at::randn({6, 40}) / 10.0;
  InputStatistics inputs(40);
  inputs.add(x);
  std::vector<QuantSpec> specs(3, group_spec(4, 16));
  specs[1].granularity = Granularity::block;
  specs[1].block = {4, 16};
  specs[2].granularity = Granularity::tensor;
  for (const QuantSpec& spec : specs)
    for (const ColumnOrder order : {ColumnOrder::plain, ColumnOrder::group, ColumnOrder::column}) {
      GptqOptions options;
      options.order = order;
      options.scale_search = ScaleSearch::minmax;
      const RoundedWeight found = solvers::gptq(weight, inputs.hessian(), spec, 4, options);
      const auto block = block_shape(spec);
      const at::Tensor again =
          dequantize(found.codes, found.scale, found.zero_point, block, at::kFloat);
      EXPECT_TRUE(at::equal(again, found.weight));
      const at::Tensor nearest =
          std::get<0>(fake_quantize(weight, quantizer_of(spec, 4, Quantizer::Mode::minmax).text()));
      EXPECT_LT(objective(weight - found.weight, inputs.hessian()),
                objective(weight - nearest, inputs.hessian()));
    }
}

}  // namespace
}  // namespace qat
