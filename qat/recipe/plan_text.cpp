#include <algorithm>

#include "qat/recipe/coverage.h"
#include "qat/recipe/numbers.h"
#include "qat/recipe/width_name.h"
#include "qat/recipe/yaml_section.h"

namespace qat {

std::string to_text(const Plan& plan) {
  size_t width = 0;
  for (const auto& layer : plan.layers) width = std::max(width, layer.name.size());
  std::string text;
  for (const auto& layer : plan.layers) {
    text += layer.name + std::string(width - layer.name.size() + 2, ' ');
    if (layer.type != "Linear") text += layer.type + " ";
    if (layer.matrices > 1) text += std::to_string(layer.matrices) + " x ";
    text += "[" + std::to_string(layer.out_features) + ", " + std::to_string(layer.in_features) +
            "]  weight " + (layer.weight ? describe(*layer.weight) : "float");
    if (!layer.note.empty()) text += " (" + layer.note + ")";
    if (layer.input) text += "; input " + describe(*layer.input);
    if (!layer.shares.empty())
      text += "; one outer scale for " + detail::join(layer.shares, " and ");
    text += "\n";
  }
  text += std::to_string(plan.layers.size()) + " layers quantized, " +
          std::to_string(plan.untouched) + " layers left alone\n" + coverage_text(plan);
  if (plan.kv_cache) text += "cache of keys and values: " + describe(*plan.kv_cache) + "\n";
  for (const Stage& stage : plan.stages) {
    if (plan.stages.size() == 1 && !stage.weight_bits && !stage.input_bits) break;  // no schedule
    text += "until " + number_text(stage.until.value) + (stage.until.is_percent ? "%" : " steps") +
            ": weights " + width_name(stage.weight_bits) + ", inputs " +
            width_name(stage.input_bits) + "\n";
  }
  return text;
}

}  // namespace qat
