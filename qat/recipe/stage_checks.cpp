#include "qat/recipe/stage_checks.h"

#include <optional>
#include <string>

#include "qat/recipe/width_name.h"

namespace qat {
namespace {

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

// A stage in which no layer is wider than it is exported would train at another width than it says.
void check_stage_widths(const Recipe& recipe, const Plan& plan, std::vector<Problem>* problems) {
  const auto check = [&](size_t stage, const char* key, std::optional<int> bits,
                         const std::optional<QuantSpec> LayerPlan::* spec) {
    if (!bits || *bits == kFloat) return;
    const LayerPlan* narrowest = nullptr;
    for (const LayerPlan& layer : plan.layers)
      if (layer.*spec && (!narrowest || (layer.*spec)->bits < (narrowest->*spec)->bits))
        narrowest = &layer;
    if (narrowest && *bits >= (narrowest->*spec)->bits) return;
    std::string text = "schedule[" + std::to_string(stage) + "]." + key;
    if (narrowest)
      text += " must be no narrower than what is exported, " + dtype_name(*(narrowest->*spec)) +
              " for " + narrowest->name;
    else
      text.append(" must be left out, since no layer's ").append(key).append(" is quantized");
    problems->push_back({recipe.schedule[stage].place, text + ", but is " + width_name(bits)});
  };
  for (size_t i = 0; i < recipe.schedule.size(); ++i) {
    check(i, "weight", recipe.schedule[i].weight_bits, &LayerPlan::weight);
    check(i, "input", recipe.schedule[i].input_bits, &LayerPlan::input);
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
    if (&stage != &recipe.schedule.back() && !stage.until.is_percent && recipe.train.steps > 0 &&
        step >= recipe.train.steps)
      problems->push_back(
          {stage.place, "until of a stage before the last must be below train.steps, " +
                            std::to_string(recipe.train.steps) +
                            ", so that what is exported is trained, but is step " +
                            std::to_string(step)});
  }
  if (before < recipe.train.steps)
    problems->push_back(
        {recipe.schedule.back().place, "until of the last stage must be 100% or train.steps, " +
                                           std::to_string(recipe.train.steps) + ", but is step " +
                                           std::to_string(before)});
}

}  // namespace

void check_stages(const Recipe& recipe, const Plan& plan, std::vector<Problem>* problems) {
  check_bounds(recipe, problems);
  check_last_stage(recipe, plan, problems);
  check_offset_widths(recipe, plan, problems);
  check_stage_widths(recipe, plan, problems);
}

}  // namespace qat
