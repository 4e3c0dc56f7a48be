#include "qat/recipe/plan.h"

#include <fnmatch.h>

#include <algorithm>
#include <regex>

#include "qat/error.h"
#include "qat/recipe/fused_layers.h"
#include "qat/recipe/numbers.h"
#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// The layers that a rule's `match` names. A regular expression is compiled once. Errors of
// std::regex, some of which come only while it searches, are thrown as InvalidArgument.
class Matcher {
 public:
  explicit Matcher(const std::string& match) : match_(match) {
    if (!starts_with(match, "re:")) return;
    try {
      regex_.emplace(match.substr(3));
    } catch (const std::regex_error&) {
      throw InvalidArgument("match must be a regular expression after re:, but is " + match);
    }
  }

  bool operator()(const LayerInfo& layer) const {
    if (layer.by_name_only)
      return match_ == layer.name || (layer.type == "Embedding" && match_ == "type:Embedding");
    if (regex_) return search(layer.name);
    if (starts_with(match_, "type:")) return layer.type == match_.substr(5);
    return fnmatch(match_.c_str(), layer.name.c_str(), 0) == 0;
  }

 private:
  bool search(const std::string& name) const {
    try {
      return std::regex_search(name, *regex_);
    } catch (const std::regex_error&) {
      throw InvalidArgument("match must be a regular expression that can be searched for, but " +
                            match_ + " is too complex for " + name);
    }
  }

  std::string match_;
  std::optional<std::regex> regex_;
};

void check_divisible(const Rule& rule, const QuantSpec& spec, const LayerInfo& layer,
                     std::vector<Problem>* problems) {
  const auto report = [&](const std::string& side, int64_t block, int64_t size) {
    if (block <= 0 || size % block == 0) return;
    problems->push_back({rule.place, side + " must divide the layer, but " + layer.name + " has " +
                                         (side == "block rows" ? "out_features " : "in_features ") +
                                         std::to_string(size) + ", which " + std::to_string(block) +
                                         " does not divide"});
  };
  if (spec.granularity == Granularity::group)
    report("group_size", spec.group_size, layer.in_features);
  if (spec.granularity == Granularity::block) {
    report("block rows", spec.block[0], layer.out_features);
    report("block columns", spec.block[1], layer.in_features);
  }
  if (spec.scale.has_outer())
    report("the columns of an outer scale", spec.scale.outer_block[1], layer.in_features);
}

// Patches of a convolution overlap, so that a pixel is in several rows of its input matrix and only
// a scale per tensor fits; the input of an embedding is indices.
void check_input(const Rule& rule, const QuantSpec& spec, const LayerInfo& layer,
                 std::vector<Problem>* problems) {
  if (layer.type == "Embedding")
    problems->push_back({rule.place, "input must not be given for an Embedding, but " + rule.match +
                                         " matches " + layer.name});
  if (layer.type == "Conv2d" && spec.granularity != Granularity::tensor)
    problems->push_back(
        {rule.place, "input of a Conv2d must have granularity tensor, but that of " + layer.name +
                         " has " + name_of(spec.granularity)});
}

std::string no_match(const Rule& rule, const std::vector<LayerInfo>& layers) {
  std::vector<std::string> names;
  names.reserve(layers.size());
  for (const auto& layer : layers) names.push_back(layer.name);
  const std::string near = nearest(rule.match, names);
  return "match must name a layer, but " + rule.match + " matches none of " +
         std::to_string(layers.size()) + " layers" +
         (near.empty() ? names.empty() ? "" : " (the first is " + names.front() + ")"
                       : "; did you mean " + near + "?");
}

// The indices of the layers that a rule matches; none, and a problem, when its match is invalid.
std::optional<std::vector<size_t>> matched_by(const Rule& rule,
                                              const std::vector<LayerInfo>& layers,
                                              std::vector<Problem>* problems) {
  try {
    const Matcher matcher(rule.match);
    std::vector<size_t> matched;
    for (size_t i = 0; i < layers.size(); ++i)
      if (matcher(layers[i])) matched.push_back(i);
    return matched;
  } catch (const InvalidArgument& error) {
    problems->push_back({rule.place, error.what()});
    return std::nullopt;
  }
}

// Engines multiply layers that they fuse under one outer scale: they train under one.
void share_outer_scales(Plan& plan) {
  std::map<std::string, LayerPlan*> layers;
  for (LayerPlan& layer : plan.layers) layers[layer.name] = &layer;
  const auto alike = [](const LayerPlan& a, const LayerPlan& b) {
    return a.weight && b.weight && *a.weight == *b.weight && a.in_features == b.in_features;
  };
  for (LayerPlan& first : plan.layers) {
    if (!first.weight || first.weight->scale.outer_block != std::array<int64_t, 2>{-1, -1})
      continue;
    std::vector<std::string> names{first.name};
    for (const std::string& name : fused_with(first.name))
      if (const auto other = layers.find(name);
          other != layers.end() && alike(first, *other->second))
        names.push_back(name);
    if (names.size() > 1)
      for (const std::string& name : names) layers[name]->shares = names;
  }
}

std::string width_name(std::optional<int> bits) {
  return !bits ? "as exported" : bits == kFloat ? "float" : "int" + std::to_string(*bits);
}

struct Chosen {
  const Rule* rule = nullptr;
  std::optional<QuantSpec> spec;
};

// At the end of the run each tensor must have the width that is exported.
void check_last_stage(const Recipe& recipe, const Plan& plan, std::vector<Problem>* problems) {
  const Stage& last = plan.stages.back();
  const auto check = [&](const char* key, std::optional<int> bits,
                         const std::optional<QuantSpec>& spec, const std::string& layer) {
    if (!spec || !bits || (bits != kFloat && *bits <= spec->bits)) return true;
    problems->push_back({last.place, "schedule[" + std::to_string(recipe.schedule.size() - 1) +
                                         "]." + key + " must end at the width that is exported, " +
                                         dtype_name(*spec) + " for " + layer + ", but is " +
                                         width_name(bits)});
    return false;
  };
  for (const auto& layer : plan.layers)
    if (!check("weight", last.weight_bits, layer.weight, layer.name) ||
        !check("input", last.input_bits, layer.input, layer.name))
      return;
}

// The codes of a grid with offsets are not negative, and take 7 bits of int8.
void check_offset_widths(const Recipe& recipe, const Plan& plan, std::vector<Problem>* problems) {
  for (const auto& layer : plan.layers) {
    if (!layer.weight || !layer.weight->has_offset()) continue;
    for (size_t i = 0; i < recipe.schedule.size(); ++i)
      if (recipe.schedule[i].weight_bits > 7) {
        problems->push_back(
            {recipe.schedule[i].place,
             "schedule[" + std::to_string(i) + "].weight must be at most int7 for " + layer.name +
                 ", whose grid has offsets, but is " + width_name(recipe.schedule[i].weight_bits)});
        return;
      }
  }
}

void check_bounds(const Recipe& recipe, std::vector<Problem>* problems) {
  if (recipe.schedule.empty()) return;
  int64_t before = -1;
  for (const Stage& stage : recipe.schedule) {
    const int64_t step = stage.until.step_of(recipe.train.steps);
    if (step < before)
      problems->push_back(
          {stage.place, "until must lie after the stage before it, which ends at step " +
                            std::to_string(before) + ", but is step " + std::to_string(step)});
    before = step;
  }
  if (before < recipe.train.steps)
    problems->push_back(
        {recipe.schedule.back().place, "until of the last stage must be 100% or train.steps, " +
                                           std::to_string(recipe.train.steps) + ", but is step " +
                                           std::to_string(before)});
}

}  // namespace

bool matches(const std::string& match, const LayerInfo& layer) { return Matcher(match)(layer); }

Plan make_plan(const Recipe& recipe, const std::vector<LayerInfo>& layers) {
  std::vector<Problem> problems;
  std::vector<Chosen> weights(layers.size()), inputs(layers.size());
  for (const Rule& rule : recipe.layers) {
    const auto matched = matched_by(rule, layers, &problems);
    if (!matched) continue;
    for (const size_t i : *matched) {
      if (rule.weight.given) weights[i] = {&rule, rule.weight.spec};
      if (rule.input.given) inputs[i] = {&rule, rule.input.spec};
    }
    if (matched->empty()) problems.push_back({rule.place, no_match(rule, layers)});
  }
  Plan plan;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (inputs[i].spec) check_input(*inputs[i].rule, *inputs[i].spec, layers[i], &problems);
    for (const Chosen& chosen : {weights[i], inputs[i]})
      if (chosen.spec) check_divisible(*chosen.rule, *chosen.spec, layers[i], &problems);
    if (weights[i].spec || inputs[i].spec)
      plan.layers.push_back({layers[i].name, layers[i].in_features, layers[i].out_features,
                             weights[i].spec, inputs[i].spec, layers[i].type});
  }
  plan.untouched = static_cast<int64_t>(layers.size() - plan.layers.size());
  plan.kv_cache = recipe.kv_cache;
  plan.stages = recipe.schedule.empty() ? std::vector<Stage>{Stage{}} : recipe.schedule;
  check_bounds(recipe, &problems);
  check_last_stage(recipe, plan, &problems);
  check_offset_widths(recipe, plan, &problems);
  if (!problems.empty()) throw RecipeError(recipe.file, problems);
  share_outer_scales(plan);
  return plan;
}

Plan with_widths(const Plan& plan, const std::map<std::string, int>& widths) {
  Plan result = plan;
  for (LayerPlan& layer : result.layers)
    if (const auto found = widths.find(layer.name); layer.weight && found != widths.end()) {
      if (!layer.weight->takes_widths() && layer.weight->bits != found->second)
        throw InvalidArgument(layer.name +
                              " must have integer weights under scales of one level to "
                              "take another width, but has " +
                              describe(*layer.weight) + ".");
      layer.weight->bits = found->second;
    }
  return result;
}

Plan naive_plan(const Plan& plan, int bits) {
  Plan naive = plan;
  naive.stages = {Stage{}};
  for (LayerPlan& layer : naive.layers) {
    if (!layer.weight) continue;
    if (layer.weight->takes_widths()) layer.weight->bits = bits;
    layer.weight->range = Range::minmax;
  }
  return naive;
}

Plan float8_plan(const Plan& plan) {
  Plan result = plan;
  result.stages = {Stage{}};
  for (LayerPlan& layer : result.layers) {
    QuantSpec spec;
    spec.grid = Grid::e4m3;
    if (layer.weight && layer.weight->scale.is_dtype()) spec.scale = layer.weight->scale;
    layer.weight = spec;
    layer.input.reset();
    if (layer.type != "Linear") continue;
    spec.granularity = Granularity::token;
    spec.dynamic = true;
    spec.scale = {ScaleCode::float32};
    layer.input = spec;
  }
  return result;
}

std::string to_text(const Plan& plan) {
  size_t width = 0;
  for (const auto& layer : plan.layers) width = std::max(width, layer.name.size());
  std::string text;
  for (const auto& layer : plan.layers) {
    text += layer.name + std::string(width - layer.name.size() + 2, ' ');
    if (layer.type != "Linear") text += layer.type + " ";
    text += "[" + std::to_string(layer.out_features) + ", " + std::to_string(layer.in_features) +
            "]  weight " + (layer.weight ? describe(*layer.weight) : "float");
    if (layer.input) text += "; input " + describe(*layer.input);
    if (!layer.shares.empty()) text += "; one outer scale for " + join(layer.shares, " and ");
    text += "\n";
  }
  text += std::to_string(plan.layers.size()) + " layers quantized, " +
          std::to_string(plan.untouched) + " layers left alone\n";
  if (plan.kv_cache) text += "cache of keys and values: " + describe(*plan.kv_cache) + "\n";
  for (const Stage& stage : plan.stages)
    text += "until " + number_text(stage.until.value) + (stage.until.is_percent ? "%" : " steps") +
            ": weights " + width_name(stage.weight_bits) + ", inputs " +
            width_name(stage.input_bits) + "\n";
  return text;
}

}  // namespace qat
