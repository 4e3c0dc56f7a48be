#include "qat/recipe/rule_reader.h"

#include "qat/recipe/spec_reader.h"

namespace qat {
namespace {

// `match`: what it is where the rule does not say.
Rule read_rule(YamlSection& section, bool keeps_scales, const char* match) {
  Rule rule;
  rule.place = section.place();
  rule.match = section.text("match", match);
  if (rule.match.empty() && !section.has("match"))
    section.reject("match", "must name layers by a glob, re:<regex> or type:<class>, or be blocks");
  rule.weight = read_choice(section, "weight", TensorRole::weight, keeps_scales);
  rule.input = read_choice(section, "input", TensorRole::input);
  rule.allow_float = section.boolean("allow_float", rule.allow_float);
  if (!rule.weight.given && !rule.input.given) section.reject("weight", "must be given, or input");
  section.finish();
  return rule;
}

// Bounds of one kind must increase; a percentage and a step are compared by make_plan, which knows
// the number of steps.
bool grows(const Bound& before, const Bound& after) {
  return before.is_percent != after.is_percent || before.value < after.value;
}

}  // namespace

std::vector<Rule> read_layers(YamlSection& recipe, bool keeps_scales) {
  recipe.require("layers");
  const YAML::Node layers = recipe.child("layers");
  if (layers.IsDefined() && layers.IsMap()) {  // in short: one rule, for the blocks
    YamlSection section = recipe.section("layers");
    return {read_rule(section, keeps_scales, "blocks")};
  }
  std::vector<Rule> rules;
  for (YamlSection& section : recipe.sections("layers")) {
    section.require("match");
    rules.push_back(read_rule(section, keeps_scales, ""));
  }
  if (rules.empty()) recipe.reject("layers", "must list at least one rule");
  return rules;
}

std::vector<Stage> read_schedule(YamlSection& recipe) {
  std::vector<Stage> stages;
  for (YamlSection& section : recipe.sections("schedule")) {
    Stage stage;
    stage.place = section.place();
    stage.until = section.bound("until", stage.until);
    stage.weight_bits = read_stage_bits(section, "weight");
    stage.input_bits = read_stage_bits(section, "input");
    if (!stages.empty() && !grows(stages.back().until, stage.until))
      section.reject("until", "must lie after the stage before it");
    section.finish();
    stages.push_back(stage);
  }
  return stages;
}

}  // namespace qat
