#pragma once

#include "qat/ops/kernels.h"

namespace qat {

// The parameters of blocks, choose_qparams.h; those under outer scales in full precision.
void choose_params(const Blocks& blocks, const OptionalTensor& importance, bool searching,
                   const FoundTensors& found);

}  // namespace qat
