#include <gtest/gtest.h>

#include <random>

#include "qat/solvers/allocation.h"
#include "tests/qat/message_of.h"

namespace qat {
namespace {

using Layers = std::vector<std::vector<solvers::WidthOption>>;

struct Total {
  double loss = 0.0;
  int64_t size = 0;
};

Total total_of(const Layers& layers, const std::vector<size_t>& choice) {
  Total total;
  for (size_t i = 0; i < layers.size(); ++i) {
    total.loss += layers[i][choice[i]].loss;
    total.size += layers[i][choice[i]].size;
  }
  return total;
}

// Every combination, one after the other.
double best_by_trying(const Layers& layers, int64_t budget) {
  double best = 1e300;
  std::vector<size_t> choice(layers.size(), 0);
  for (;;) {
    const Total total = total_of(layers, choice);
    if (total.size <= budget) best = std::min(best, total.loss);
    size_t layer = 0;
    while (layer < layers.size() && ++choice[layer] == layers[layer].size()) choice[layer++] = 0;
    if (layer == layers.size()) return best;
  }
}

TEST(AllocateWidths, FindsTheBestOfAllCombinations) {
  std::mt19937 random(0);
  std::uniform_real_distribution<double> loss(0.0, 1.0);
  for (int round = 0; round < 50; ++round) {
    Layers layers(6);
    for (auto& options : layers)
      for (const int bits : {2, 3, 4, 8}) options.push_back({bits, loss(random) / bits, bits * 10});
    for (const int64_t budget : {120, 200, 300, 480}) {
      const auto choice = solvers::allocate_widths(layers, budget);
      const Total total = total_of(layers, choice);
      EXPECT_LE(total.size, budget);
      EXPECT_NEAR(total.loss, best_by_trying(layers, budget), 1e-12);
    }
  }
}

TEST(AllocateWidths, NeverExceedsTheBudgetHoweverCoarse) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int64_t> size(1, 1'000'000'000);
  Layers layers(40);
  for (auto& options : layers) {
    const int64_t unit = size(random);
    for (const int bits : {2, 4, 8}) options.push_back({bits, 1.0 / bits, bits * unit});
  }
  int64_t least = 0;
  for (const auto& options : layers) least += options[0].size;
  for (const double share : {1.0, 1.1, 1.7, 3.0, 5.0}) {
    const auto budget = static_cast<int64_t>(static_cast<double>(least) * share);
    EXPECT_LE(total_of(layers, solvers::allocate_widths(layers, budget, 100)).size, budget);
  }
}

TEST(AllocateWidths, SaysWhatCannotBe) {
  EXPECT_THROW(solvers::allocate_widths({{}}, 10), std::invalid_argument);
  EXPECT_THROW(solvers::allocate_widths({{{2, 1.0, 11}}}, 10), std::invalid_argument);
  EXPECT_TRUE(solvers::allocate_widths({}, 0).empty());
}

TEST(AllocateWidths, ALayerMayHave256Widths) {
  std::vector<solvers::WidthOption> options;
  for (int index = 0; index < 256; ++index) options.push_back({8, 256.0 - index, index});
  EXPECT_EQ(solvers::allocate_widths({options, options}, 255 + 100),
            (std::vector<size_t>{255, 100}));
  options.push_back({8, 0.0, 1});
  EXPECT_EQ(message_of([&] { solvers::allocate_widths({options}, 10); }),
            "Every layer must have at most 256 widths to choose from, but one has 257.");
}

}  // namespace
}  // namespace qat
