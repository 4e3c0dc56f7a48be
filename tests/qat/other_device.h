#pragma once

#include <ATen/core/Tensor.h>

namespace qat {

// A device for machines that have only a CPU: its memory is the host's and the CPU's kernels do its
// arithmetic, but an operator that is given tensors of both is refused, as on a GPU.
inline at::Device other_device() { return {at::kHPU, 0}; }

}  // namespace qat
