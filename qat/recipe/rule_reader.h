#pragma once

#include <vector>

#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `layers`. `keeps_scales`: as for read_choice; `decides`: mode auto, which searches for
// scales, or chooses them together with codes where they have one level.
std::vector<Rule> read_layers(YamlSection& recipe, bool keeps_scales, bool decides = false);

// The recipe's `schedule`; empty when it has none.
std::vector<Stage> read_schedule(YamlSection& recipe);

}  // namespace qat
