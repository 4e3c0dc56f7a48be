#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"

namespace qat {

// A key of recipes, as its reader asks for it: the page about recipes and the schema for editors
// are written from these (tools/recipe_page.py).
struct QAT_API RecipeKey {
  std::string
      path{};  // "train.lora.rank"; of an entry of a list as of a map: "layers.weight.dtype"
  // Any of: integer, number, boolean, text; word, one of `words`; bound, a share of the steps or a
  // step; sides, two integers; words, maps, lists of these; map.
  std::vector<std::string> types{};
  std::vector<std::string> words{};
  std::vector<std::string> fallbacks{};  // what holds without it, in YAML; which, its meaning says
  std::optional<double> least{};
  std::optional<double> greatest{};
  bool required = false;  // where there is a fallback too, only in an entry of a list
  std::string meaning{};
};

// Every key, in the order of recipes.
QAT_API std::vector<RecipeKey> recipe_keys();

}  // namespace qat
