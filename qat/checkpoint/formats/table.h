#pragma once

#include <ATen/core/Tensor.h>

namespace qat {

// Levels of the grid iq4_nl, int8 of any shape, as their places in its table, uint8 0 to 15.
at::Tensor table_places(const at::Tensor& codes);

// And back.
at::Tensor table_codes(const at::Tensor& places);

}  // namespace qat
