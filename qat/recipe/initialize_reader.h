#pragma once

#include "qat/recipe/initialize.h"
#include "qat/recipe/yaml_section.h"

namespace qat {

// The recipe's `initialize`. `tries_methods`: others than the one that it names, as mode auto does.
Initialize read_initialize(YamlSection section, bool tries_methods);

}  // namespace qat
