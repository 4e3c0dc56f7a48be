#pragma once

#include <vector>

#include "qat/recipe/initialize.h"
#include "qat/recipe/recipe.h"
#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `initialize`. `tries_methods`: others than the one that it names, as mode auto does.
Initialize read_initialize(YamlSection section, bool tries_methods);

// Block training moves the scales of weights alone. Given at its default the rate claims nothing.
void check_block_training(YamlSection section, const BlockTraining& blocks,
                          const std::vector<Rule>& layers);

}  // namespace qat
