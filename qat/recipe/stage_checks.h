#pragma once

#include <vector>

#include "qat/recipe/plan.h"

namespace qat {

// Stages of the schedule that do not fit what is exported, or one another.
void check_stages(const Recipe& recipe, const Plan& plan, std::vector<Problem>* problems);

}  // namespace qat
