#pragma once

#include <string>
#include <vector>

#include "qat/ops/api.h"

namespace qat {

// The layers that engines make one matrix of, by the last parts of their names, in its order.
QAT_API const std::vector<std::vector<std::string>>& fused_layers();

// The other layers of the matrix that engines make of the one called `name`, which is the first of
// it, and them; none for any other name.
std::vector<std::string> fused_with(const std::string& name);

}  // namespace qat
