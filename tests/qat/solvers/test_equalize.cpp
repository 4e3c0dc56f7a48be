#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/recipe/presets.h"
#include "qat/solvers/equalize.h"
#include "qat/solvers/hadamard.h"
#include "tests/qat/group_spec.h"

namespace qat {
namespace {

TEST(Equalize, AwqIsNeverWorseThanNoScales) {
  at::manual_seed(0);
  at::Tensor x = at::randn({300, 64});
  x.select(1, 5).mul_(40.0);
  InputStatistics statistics(64);
  statistics.add(x);
  const solvers::ChannelScale found =
      solvers::awq_scale({{at::randn({32, 64}), group_spec(3, 16), 3}}, statistics);
  EXPECT_LT(found.loss, found.plain);
  EXPECT_GT(found.scale[5].item<float>(), found.scale[6].item<float>());
}

// Under the outer scale of a weight that is far larger, most of E4M3 is out of reach.
TEST(Equalize, AwqJudgesLayersUnderTheOuterScaleThatTheyShare) {
  at::manual_seed(0);
  InputStatistics statistics(64);
  statistics.add(at::randn({300, 64}));
  const at::Tensor large = at::zeros({32, 64}).fill_(6 << 20), small = at::randn({32, 64});
  const QuantSpec spec = find_preset("nvfp4")->spec;
  const solvers::ChannelScale apart = solvers::awq_scale({{large, spec, 4}, {small, spec, 4}},
                                                         statistics),
                              together = solvers::awq_scale(
                                  {{large, spec, 4, 3}, {small, spec, 4, 3}}, statistics);
  EXPECT_LT(apart.plain, 0.5 * together.plain);
  const solvers::ChannelScale alone =
      solvers::awq_scale({{large, spec, 4, 0}, {small, spec, 4, 1}}, statistics);
  EXPECT_EQ(apart.plain, alone.plain);
}

TEST(Equalize, SmoothingHalvesTheOutliersInTheLogarithm) {
  const at::Tensor weight = at::ones({3, 2});
  const at::Tensor scale = solvers::smoothing_scale({weight}, at::tensor({16.0f, 1.0f}), 0.5);
  EXPECT_FLOAT_EQ(scale[0].item<float>(), 4.0f);
  EXPECT_FLOAT_EQ(scale[1].item<float>(), 1.0f);
}

TEST(Equalize, ClippingIsNeverWorseThanTheRange) {
  at::manual_seed(0);
  const at::Tensor weight = at::randn({8, 64}), x = at::randn({200, 64});
  InputStatistics statistics(64);
  statistics.add(x);
  const auto [scale, zero_point] =
      solvers::clipped_qparams(weight, statistics.hessian(), group_spec(3, 16), 3);
  EXPECT_EQ(scale.sizes(), (std::vector<int64_t>{8, 4}));
  EXPECT_LT(scale.mean().item<float>(),
            (weight.view({8, 4, 16}).abs().amax(2) / 3.5).mean().item<float>());
}

TEST(Hadamard, IsOrthogonalWithEntriesOfOneSize) {
  for (const int64_t size : {1, 2, 12, 20, 28, 64, 384}) {
    const at::Tensor rotation = solvers::random_rotation(size, 7);
    EXPECT_TRUE(at::allclose(at::mm(rotation, rotation.t()), at::eye(size, at::kDouble), 0, 1e-12));
    EXPECT_TRUE(at::allclose(rotation.abs() * std::sqrt(static_cast<double>(size)),
                             at::ones({size, size}, at::kDouble)));
    EXPECT_TRUE(solvers::has_hadamard(size));
  }
  EXPECT_FALSE(solvers::has_hadamard(3));
}

TEST(Equalize, RefusesOtherFeaturesAndSharesBeyondOne) {
  InputStatistics inputs(4);
  inputs.add(at::randn({8, 4}));
  EXPECT_THROW(solvers::awq_scale({{at::randn({2, 5}), group_spec(4, 4), 4}}, inputs, 20),
               std::invalid_argument);
  EXPECT_THROW(solvers::smoothing_scale({at::randn({2, 4})}, at::ones({4}), 1.5),
               std::invalid_argument);
}

}  // namespace
}  // namespace qat
