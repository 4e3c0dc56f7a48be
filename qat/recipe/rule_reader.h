#pragma once

#include <vector>

#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `layers`; `keeps_scales` as for read_choice.
std::vector<Rule> read_layers(YamlSection& recipe, bool keeps_scales);

// Whether its scale is a parameter, which training moves.
inline bool is_learned(const Choice& choice) {
  return choice.spec && choice.spec->range == Range::learned;
}

// The recipe's `schedule`; empty when it has none.
std::vector<Stage> read_schedule(YamlSection& recipe);

}  // namespace qat
