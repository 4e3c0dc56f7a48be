#pragma once

#include <string>
#include <vector>

#include "qat/recipe/plan.h"

// Plans of three layers, and what is wrong with them.
namespace qat {

inline const std::vector<LayerInfo> kLayers{{"model.0.q_proj", "Linear", 64, 64, false},
                                            {"model.0.down_proj", "Linear", 96, 64, false},
                                            {"lm_head", "Linear", 64, 100, true}};

inline Recipe recipe_of(const std::string& rest) {
  return parse_recipe("version: 1\n" + rest, "r.yaml");
}

inline std::string problems_of(const std::string& rest,
                               const std::vector<LayerInfo>& layers = kLayers) {
  try {
    make_plan(recipe_of(rest), layers);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

}  // namespace qat
