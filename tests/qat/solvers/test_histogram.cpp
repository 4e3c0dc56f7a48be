#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "qat/solvers/histogram.h"

namespace qat {
namespace {

int64_t below(const Histogram& histogram, double border) {
  int64_t count = 0;
  for (size_t bin = 0; bin < histogram.counts().size(); ++bin)
    if ((static_cast<double>(histogram.first()) + static_cast<double>(bin) + 1.0) *
            histogram.width() <=
        border)
      count += histogram.counts()[bin];
  return count;
}

TEST(Histogram, CountsEveryValueInItsBin) {
  at::manual_seed(0);
  Histogram histogram;
  const at::Tensor x = at::randn({10000}), y = at::randn({500}) * 100.0, z = at::randn({3}) * 1e6;
  for (const at::Tensor& part : {x, y, z}) histogram.add(part);
  const at::Tensor all = at::cat({x, y, z});
  EXPECT_EQ(histogram.total(), 10503);
  EXPECT_EQ(std::accumulate(histogram.counts().begin(), histogram.counts().end(), int64_t{0}),
            10503);
  EXPECT_LE(static_cast<int64_t>(histogram.counts().size()), Histogram::kMostBins);
  EXPECT_EQ(below(histogram, 0.0), all.lt(0).sum().item<int64_t>());
  const double border = 64.0 * histogram.width();
  EXPECT_EQ(below(histogram, border), all.to(at::kDouble).lt(border).sum().item<int64_t>());
}

TEST(Histogram, GrowsWithoutCountingAnew) {
  at::manual_seed(0);
  Histogram at_once, in_parts;
  const at::Tensor x = at::randn({4000});
  at_once.add(x);
  for (const at::Tensor& part : x.chunk(7)) in_parts.add(part);
  for (const double border : {-1.0, -0.5, 0.0, 0.25, 2.0})
    EXPECT_EQ(below(at_once, border), below(in_parts, border));
}

TEST(Histogram, StandsRangesThatDifferByManyOrders) {
  Histogram histogram;
  histogram.add(at::full({10}, 1e-20f));
  histogram.add(at::tensor({-3e20f, 5e20f}));
  histogram.add(at::tensor({0.0f}));
  EXPECT_EQ(histogram.total(), 13);
  EXPECT_LE(static_cast<int64_t>(histogram.counts().size()), Histogram::kMostBins);
}

TEST(Histogram, QuantilesAreThoseOfTheValues) {
  at::manual_seed(0);
  const at::Tensor x = at::randn({20000});
  Histogram histogram;
  histogram.add(x);
  for (const double rank : {0.01, 0.5, 0.9, 0.999}) {
    EXPECT_NEAR(histogram.quantile(rank), at::quantile(x, rank).item<double>(),
                2.0 * histogram.width());
    EXPECT_NEAR(histogram.magnitude_quantile(rank), at::quantile(x.abs(), rank).item<double>(),
                2.0 * histogram.width());
  }
}

}  // namespace
}  // namespace qat
