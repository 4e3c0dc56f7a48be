#pragma once

// FP8: the grids fp8_e4m3 and fp8_e5m2, whose levels are the finite numbers of a float of 8 bits
// rather than whole ones. numerics.md (23). Made of torch's own operators, whose conversions to
// these types round to nearest, ties to even, so one implementation serves every backend.

#include <ATen/core/Tensor.h>

#include "qat/ops/qparams.h"

namespace qat {

// torch's type of the codes.
at::ScalarType float8_dtype(QuantRange range);

// Codes of `x`, in the type above and the shape of `x`: what lies beyond the largest number of the
// type saturates, infinities included; NaN stays. `scale` float32, one per block.
at::Tensor float8_codes(const at::Tensor& x, const at::Tensor& scale, at::IntArrayRef block,
                        QuantRange range);

// codes * scale in float32, rounded once to `dtype`.
at::Tensor float8_dequantize(const at::Tensor& codes, const at::Tensor& scale,
                             at::IntArrayRef block, at::ScalarType dtype);

// The two in one, with NaN for what is not finite, as on every grid.
at::Tensor float8_fake_quantize(const at::Tensor& x, const at::Tensor& scale, at::IntArrayRef block,
                                QuantRange range, at::ScalarType dtype);

// `grad` where the code did not saturate, else 0; written over `grad`.
void float8_straight_through_inplace(const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& scale, at::IntArrayRef block,
                                     QuantRange range);

}  // namespace qat
