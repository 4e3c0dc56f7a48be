#pragma once

#include <optional>
#include <string>

#include "qat/recipe/recipe.h"

namespace qat {

// "int4", "float", or for none "as exported".
inline std::string width_name(std::optional<int> bits) {
  return !bits ? "as exported" : bits == kFloat ? "float" : "int" + std::to_string(*bits);
}

}  // namespace qat
