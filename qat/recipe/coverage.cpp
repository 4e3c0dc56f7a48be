#include "qat/recipe/coverage.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace qat {
namespace {

// Rounded down, so that nothing is called 100 % that is less.
std::string percent(int64_t part, int64_t whole) {
  if (whole <= 0) return "0 %";
  const int64_t tenths = part * 1000 / whole;
  char text[32];
  std::snprintf(text, sizeof text, "%lld.%lld %%", static_cast<long long>(tenths / 10),
                static_cast<long long>(tenths % 10));
  return text;
}

std::string and_more(const std::string& first, size_t count) {
  return count == 1 ? first : first + " and " + std::to_string(count - 1) + " more";
}

struct Group {
  std::string first;
  size_t count = 0;
  int64_t elements = 0;
};

// The one later rule that has decided all of what `rule` says, if there is one. A later rule that
// names a single layer is an exception to it, even where it has no other layer.
const Rule* overruling(const Rule& rule, const std::vector<size_t>& matched,
                       const std::vector<LayerInfo>& layers, const std::vector<Chosen>& weights,
                       const std::vector<Chosen>& inputs) {
  const Rule* later = nullptr;
  for (const size_t i : matched)
    for (const auto& [given, chosen] :
         {std::pair{rule.weight.given, weights[i].rule},
          std::pair{rule.input.given && layers[i].plannable, inputs[i].rule}}) {
      if (!given) continue;
      if (chosen == &rule || (later && chosen != later)) return nullptr;
      later = chosen;
    }
  const bool is_exception =
      later && std::any_of(layers.begin(), layers.end(),
                           [&](const LayerInfo& layer) { return layer.name == later->match; });
  return is_exception ? nullptr : later;
}

}  // namespace

void check_covered(const std::vector<LayerInfo>& layers, const std::vector<Chosen>& weights,
                   std::vector<Problem>* problems) {
  std::map<const Rule*, std::vector<const LayerInfo*>> uncovered;
  std::map<const Rule*, int64_t> reached;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!weights[i].spec) continue;
    const Rule* rule = weights[i].rule;
    reached[rule] += layers[i].elements();
    const bool asked = layers[i].multiplied || rule->match == layers[i].name;
    if (!layers[i].plannable && asked && !rule->allow_float) uncovered[rule].push_back(&layers[i]);
  }
  for (const auto& [rule, found] : uncovered) {
    int64_t elements = 0;
    for (const LayerInfo* layer : found) elements += layer->elements();
    problems->push_back(
        {rule->place, "match must reach what torchqat can quantize, but " + rule->match +
                          " also reaches " + and_more(found[0]->name, found.size()) + ", " +
                          percent(elements, reached[rule]) + " of its weights (" + found[0]->why +
                          "); leave them by a rule with weight: float, or by allow_float: true"});
  }
}

std::vector<LeftAlone> left_alone(const std::vector<LayerInfo>& layers,
                                  const std::vector<Chosen>& weights) {
  std::vector<LeftAlone> left;
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerInfo& layer = layers[i];
    if (weights[i].spec && layer.plannable) continue;
    const bool by_rule = weights[i].rule && !weights[i].spec;
    left.push_back({layer.name, layer.elements(), layer.multiplied,
                    by_rule             ? "by a rule"
                    : layer.why.empty() ? "no rule reaches it"
                                        : layer.why});
  }
  return left;
}

int64_t Plan::quantized(bool multiplied_alone) const {
  int64_t sum = 0;
  for (const LayerPlan& layer : layers)
    if (layer.weight && (layer.multiplied || !multiplied_alone)) sum += layer.elements();
  return sum;
}

int64_t Plan::multiplied() const {
  int64_t sum = quantized(/*multiplied_alone=*/true);
  for (const LeftAlone& weight : left) sum += weight.multiplied ? weight.elements : 0;
  return sum;
}

std::string coverage_text(const Plan& plan) {
  std::string text = percent(plan.quantized(), plan.parameters) + " of all parameters, " +
                     percent(plan.quantized(true), plan.multiplied()) +
                     " of the weights that are multiplied are quantized\n";
  std::vector<std::string> order;
  std::map<std::string, Group> groups;
  for (const LeftAlone& weight : plan.left) {
    Group& group = groups[weight.why];
    if (group.count++ == 0) {
      group.first = weight.name;
      order.push_back(weight.why);
    }
    group.elements += weight.elements;
  }
  for (const std::string& why : order)
    text += "left in floating point: " + and_more(groups[why].first, groups[why].count) + ", " +
            (groups[why].elements
                 ? percent(groups[why].elements, plan.parameters) + " of all parameters"
                 : "tied") +
            ": " + why + "\n";
  return text;
}

void check_overruled(const Rule& rule, const std::vector<size_t>& matched,
                     const std::vector<LayerInfo>& layers, const std::vector<Chosen>& weights,
                     const std::vector<Chosen>& inputs, std::vector<Problem>* problems) {
  if (const Rule* later = overruling(rule, matched, layers, weights, inputs))
    problems->push_back({rule.place, "match must decide on a layer, but " + later->match +
                                         ", a later rule, decides on all that " + rule.match +
                                         " matches; put " + rule.match +
                                         " after it, or leave it out"});
}

}  // namespace qat
