#pragma once

#include <string>

#include "qat/recipe/recipe.h"

namespace qat {

// A recipe of these rules and sections.
inline Recipe recipe_of(const std::string& layers, const std::string& rest = "") {
  return parse_recipe("version: 1\nlayers: [" + layers + "]\n" + rest, "r.yaml");
}

}  // namespace qat
