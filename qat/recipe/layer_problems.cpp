#include "qat/recipe/layer_problems.h"

#include <algorithm>
#include <numeric>

#include "qat/names.h"

namespace qat {
namespace {

constexpr size_t kNamed = 3;
constexpr auto kBlockRows = "block rows", kOuterColumns = "the columns of an outer scale";
// What smaller ones save in codes they spend on scales.
constexpr int64_t kLeastGroup = 8;

// The element of `list` for which `same` holds, after adding `made` where there is none.
template <typename T, typename Same>
T& found_or_added(std::vector<T>& list, const Same& same, T made) {
  const auto found = std::find_if(list.begin(), list.end(), same);
  if (found != list.end()) return *found;
  list.push_back(std::move(made));
  return list.back();
}

}  // namespace

std::string named(const std::vector<std::string>& names) {
  const size_t shown = names.size() > kNamed + 1 ? kNamed : names.size();
  std::vector<std::string> words(names.begin(), names.begin() + static_cast<int64_t>(shown));
  if (shown < names.size()) words.push_back(std::to_string(names.size() - shown) + " more");
  return detail::join(words, " and ");
}

void LayerProblems::add(const Place& place, const std::string& before, const LayerInfo& layer,
                        const std::string& after) {
  const auto same = [&](const Sentence& other) {
    return other.place.line == place.line && other.place.column == place.column &&
           other.before == before && other.after == after;
  };
  found_or_added(sentences_, same, {place, before, after, {}}).names.push_back(layer.name);
}

void LayerProblems::divide(const Chosen& chosen, const Choice& choice, const LayerInfo& layer,
                           const std::string& side, int64_t block) {
  if (block <= 0) return;
  const bool rows = side == kBlockRows;
  const int64_t size = rows ? layer.out_features : layer.in_features;
  const auto same = [&](const Division& other) {
    return other.choice == &choice && other.side == side && other.block == block;
  };
  Division& division = found_or_added(
      divisions_, same,
      {&choice, chosen.rule->place, side, rows ? "out_features" : "in_features", block});
  division.common = std::gcd(division.common, size);
  if (size % block == 0) return;
  found_or_added(division.indivisible, [&](const auto& other) { return other.first == size; },
                 {size, {}})
      .second.push_back(layer.name);
}

void LayerProblems::check_divisible(const Chosen& chosen, const Choice& choice,
                                    const LayerInfo& layer) {
  const QuantSpec& spec = *chosen.spec;
  if (spec.granularity == Granularity::group)
    divide(chosen, choice, layer, "group_size", spec.group_size);
  if (spec.granularity == Granularity::block) {
    divide(chosen, choice, layer, kBlockRows, spec.block[0]);
    divide(chosen, choice, layer, "block columns", spec.block[1]);
  }
  if (spec.scale.has_outer())
    divide(chosen, choice, layer, kOuterColumns, spec.scale.outer_block[1]);
}

std::string LayerProblems::text_of(const Division& division) {
  std::string text = division.side + " must divide the layer, but " +
                     std::to_string(division.block) + " does not divide ";
  for (size_t i = 0; i < division.indivisible.size(); ++i) {
    const auto& [size, names] = division.indivisible[i];
    text +=
        (i == 0 ? "" : ", nor ") + division.of + " " + std::to_string(size) + " of " + named(names);
  }
  const int64_t power = division.common & -division.common;
  const std::string& key = division.choice->block_key;
  if (key.empty() || division.side == kOuterColumns || power < kLeastGroup)
    return text + "; give them a rule of their own, with another dtype or granularity, or float";
  return text + "; the largest power of two that divides all layers of this rule is " +
         std::to_string(power) + " (" + key + ")";
}

void LayerProblems::append_to(std::vector<Problem>* problems) const {
  for (const auto& [place, before, after, names] : sentences_)
    problems->push_back({place, before + named(names) + after});
  for (const Division& division : divisions_)
    if (!division.indivisible.empty()) problems->push_back({division.place, text_of(division)});
}

}  // namespace qat
