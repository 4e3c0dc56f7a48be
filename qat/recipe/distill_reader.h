#pragma once

#include <string>

#include "qat/recipe/run_recipe.h"
#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `distill`, of a model of this kind.
DistillSection read_distill(YamlSection section, const std::string& kind);

}  // namespace qat
