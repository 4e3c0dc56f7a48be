#pragma once

#include <ATen/core/Tensor.h>

#include "qat/ops/qparams.h"

namespace qat {

// The bits of a float's codes as formats pack them: sign, exponent and mantissa of `grid` from the
// top, in the lowest bits of a byte. `codes`: numbers of the grid in any of torch's float8 types, as
// ops::quantize returns them; on return uint8 of the same shape.
at::Tensor minifloat_bits(const at::Tensor& codes, Grid grid);

// The inverse: in the float8 type that quantize returns the grid's codes in.
at::Tensor minifloat_of_bits(const at::Tensor& bits, Grid grid);

}  // namespace qat
