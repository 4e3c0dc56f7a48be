#include "qat/solvers/allocation.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "qat/error.h"

namespace qat::solvers {
namespace {

constexpr int64_t kMostSteps = 65536;
constexpr size_t kMostOptions = 256;  // an index is kept in a byte for each layer and place
constexpr double kNever = std::numeric_limits<double>::infinity();

int64_t smallest_of(const std::vector<WidthOption>& options) {
  int64_t size = options.front().size;
  for (const auto& option : options) size = std::min(size, option.size);
  return size;
}

// The largest size of which every option is a whole number beyond its layer's smallest; 0 for none.
int64_t common_unit(const std::vector<std::vector<WidthOption>>& layers) {
  int64_t unit = 0;
  for (const auto& options : layers)
    for (const auto& option : options) unit = std::gcd(unit, option.size - smallest_of(options));
  return unit;
}

int64_t smallest(const std::vector<std::vector<WidthOption>>& layers) {
  int64_t total = 0;
  for (const auto& options : layers) {
    if (options.empty())
      throw InvalidArgument("Every layer must have a width to choose from, but one has none.");
    if (options.size() > kMostOptions)
      throw InvalidArgument("Every layer must have at most " + std::to_string(kMostOptions) +
                            " widths to choose from, but one has " +
                            std::to_string(options.size()) + ".");
    total += smallest_of(options);
  }
  return total;
}

}  // namespace

std::vector<std::size_t> allocate_widths(const std::vector<std::vector<WidthOption>>& layers,
                                         int64_t budget, int64_t steps) {
  const int64_t least = smallest(layers);
  if (least > budget)
    throw InvalidArgument("The budget must be at least " + std::to_string(least) +
                          " bits, the smallest widths together, but is " + std::to_string(budget) +
                          ".");
  // Sizes count beyond each layer's smallest option, which then costs nothing and always fits.
  const int64_t spare = budget - least;
  const int64_t unit = common_unit(layers);
  const bool exact = unit > 0 && spare / unit <= kMostSteps;
  if (exact) steps = spare / unit;
  const auto steps_of = [&](int64_t size) {
    if (size == 0) return int64_t{0};
    if (exact) return size / unit;
    return size > spare
               ? steps + 1
               : static_cast<int64_t>((static_cast<__int128>(size) * steps + spare - 1) / spare);
  };
  const auto places = static_cast<size_t>(steps + 1);
  std::vector<double> best(places, 0.0);
  std::vector<std::vector<uint8_t>> chosen;  // per layer and place
  for (const auto& options : layers) {
    const int64_t smallest_size = smallest_of(options);
    std::vector<double> next(places, kNever);
    std::vector<uint8_t> choice(places, 0);
    for (size_t index = 0; index < options.size(); ++index) {
      const int64_t cost = steps_of(options[index].size - smallest_size);
      for (int64_t place = cost; place <= steps; ++place) {
        const double loss = best[static_cast<size_t>(place - cost)] + options[index].loss;
        if (loss < next[static_cast<size_t>(place)]) {
          next[static_cast<size_t>(place)] = loss;
          choice[static_cast<size_t>(place)] = static_cast<uint8_t>(index);
        }
      }
    }
    best = std::move(next);
    chosen.push_back(std::move(choice));
  }
  std::vector<size_t> result(layers.size());
  int64_t place = steps;
  for (size_t layer = layers.size(); layer-- > 0;) {
    const auto& options = layers[layer];
    result[layer] = chosen[layer][static_cast<size_t>(place)];
    const int64_t smallest_size = smallest_of(options);
    place -= steps_of(options[result[layer]].size - smallest_size);
  }
  return result;
}

}  // namespace qat::solvers
