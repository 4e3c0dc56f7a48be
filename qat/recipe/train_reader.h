#pragma once

#include "qat/recipe/run_recipe.h"
#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `train`.
TrainSection read_train(YamlSection& section);

// What `train` asks for and the rest of the recipe does not allow.
void check_train(YamlSection& train, const RunRecipe& recipe);

}  // namespace qat
