#pragma once

#include "qat/ops/kernels.h"

namespace qat {

void choose_params(const Blocks& blocks, const Choosing& how, const FoundTensors& found);

}  // namespace qat
