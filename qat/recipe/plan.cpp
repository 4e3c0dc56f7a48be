#include "qat/recipe/plan.h"

#include <algorithm>

#include "qat/error.h"
#include "qat/recipe/coverage.h"
#include "qat/recipe/fused_layers.h"
#include "qat/recipe/layer_problems.h"
#include "qat/recipe/matcher.h"
#include "qat/recipe/mixes.h"
#include "qat/recipe/stage_checks.h"
#include "qat/recipe/weight_types.h"

namespace qat {
namespace {

bool is_convolution(const std::string& type) {
  return type == "Conv1d" || type == "Conv2d" || type == "ConvTranspose1d" ||
         type == "ConvTranspose2d";
}

// Patches of a convolution overlap, so that a pixel is in several rows of its input matrix and only
// a scale per tensor fits; the input of an embedding is indices.
void check_input(const Rule& rule, const QuantSpec& spec, const LayerInfo& layer,
                 LayerProblems& problems) {
  if (layer.type == "Embedding")
    problems.add(rule.place,
                 "input must not be given for an Embedding, but " + rule.match + " matches ", layer,
                 "");
  if (is_convolution(layer.type) && spec.granularity != Granularity::tensor)
    problems.add(rule.place,
                 "input of a " + layer.type + " must have granularity tensor, but that of ", layer,
                 std::string(" has ") + name_of(spec.granularity));
}

// What is multiplied with an expert's matrix is in no module's hands; its scales must be its own.
void check_experts(const Chosen& weight, const Chosen& input, const LayerInfo& layer,
                   LayerProblems& problems) {
  if (layer.type != "Experts") return;
  if (input.spec)
    problems.add(input.rule->place,
                 "input must not be given for Experts, but " + input.rule->match + " matches ",
                 layer, "; leave them by a rule with input: float");
  if (weight.spec && weight.spec->granularity == Granularity::tensor)
    problems.add(weight.rule->place,
                 "weight of Experts must have granularity channel, group or block, but that of ",
                 layer, " has tensor");
}

// What a rule says of the weights of the layers that it matches: one spec for all, or a mix of types.
void choose_weights(const Rule& rule, const std::vector<size_t>& matched,
                    const std::vector<LayerInfo>& layers, std::vector<Chosen>& weights,
                    LayerProblems& problems) {
  const std::string& mix = rule.weight.mix;
  const std::vector<MixedType> types =
      mix.empty() ? std::vector<MixedType>{} : mix_types(mix, layers);
  for (const size_t i : matched) {
    weights[i] = {&rule, rule.weight.spec};
    if (mix.empty()) continue;
    const auto& [type, note] = types[i];
    if (!type) {
      problems.add(rule.place,
                   "the types of " + mix +
                       " have blocks of 32 columns, which do not divide in_features " +
                       std::to_string(layers[i].in_features) + " of ",
                   layers[i], "; leave them by a rule with weight: float");
      weights[i].spec.reset();  // nothing else is to be said of it
      continue;
    }
    weights[i].spec = type->spec;
    weights[i].spec->range = rule.weight.spec->range;
    weights[i].note = note;
  }
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

// Whether a rule reaches a layer that can be quantized, or a weight that cannot and is told of
// (coverage.h), or that it leaves in floating point.
bool reaches_layers(const Rule& rule, const std::vector<size_t>& matched,
                    const std::vector<LayerInfo>& layers) {
  return std::any_of(matched.begin(), matched.end(), [&](size_t i) {
    return layers[i].plannable ||
           (rule.weight.given &&
            (!rule.weight.spec ||
             ((layers[i].multiplied || rule.match == layers[i].name) && !rule.allow_float)));
  });
}

}  // namespace

void share_outer_scales(Plan& plan) {
  std::map<std::string, LayerPlan*> layers;
  for (LayerPlan& layer : plan.layers) {
    layer.shares.clear();
    layers[layer.name] = &layer;
  }
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

Plan make_plan(const Recipe& recipe, const std::vector<LayerInfo>& layers, int64_t parameters) {
  std::vector<Problem> problems;
  LayerProblems of_layers;
  std::vector<Chosen> weights(layers.size()), inputs(layers.size());
  std::vector<std::pair<const Rule*, std::vector<size_t>>> reached;
  for (const Rule& rule : recipe.layers) {
    const auto matched = matched_by(rule, layers, &problems);
    if (!matched) continue;
    reached.emplace_back(&rule, *matched);
    if (rule.weight.given) choose_weights(rule, *matched, layers, weights, of_layers);
    for (const size_t i : *matched)
      if (rule.input.given && layers[i].plannable) inputs[i] = {&rule, rule.input.spec};
    if (!reaches_layers(rule, *matched, layers))
      problems.push_back({rule.place, no_match(rule, layers)});
  }
  for (const auto& [rule, matched] : reached)
    check_overruled(*rule, matched, layers, weights, inputs, &problems);
  check_covered(layers, weights, &problems);
  Plan plan;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i].plannable) continue;
    const auto &weight = weights[i], &input = inputs[i];
    if (input.spec) check_input(*input.rule, *input.spec, layers[i], of_layers);
    check_experts(weight, input, layers[i], of_layers);
    if (weight.spec) of_layers.check_divisible(weight, weight.rule->weight, layers[i]);
    if (input.spec) of_layers.check_divisible(input, input.rule->input, layers[i]);
    ++plan.untouched;
    if (!weights[i].spec && !inputs[i].spec) continue;
    --plan.untouched;
    plan.layers.push_back({layers[i].name,
                           layers[i].in_features,
                           layers[i].out_features,
                           weights[i].spec,
                           inputs[i].spec,
                           layers[i].type,
                           {},
                           layers[i].matrices,
                           layers[i].multiplied,
                           layers[i].counted,
                           weights[i].note});
  }
  of_layers.append_to(&problems);
  plan.left = left_alone(layers, weights);
  plan.parameters = parameters;
  if (parameters == 0)
    for (const LayerInfo& layer : layers) plan.parameters += layer.elements();
  plan.kv_cache = recipe.kv_cache;
  plan.stages = recipe.schedule.empty() ? std::vector<Stage>{Stage{}} : recipe.schedule;
  check_stages(recipe, plan, &problems);
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

}  // namespace qat
