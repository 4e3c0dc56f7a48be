#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// Rounds `x` to the levels of a quantizer and back. numerics.md (1) to (9).
//
//   x            float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols] that is cut
//                into blocks (blocks.h)
//   quantizer    a Quantizer's text (quantizer.h), not empty
//   scale        float32 [grid_rows, grid_cols], one per block. fixed: as it is stored; learned:
//                rounded to what is stored first. minmax: none, found from each block's smallest and
//                largest finite element
//   zero_point   shaped like `scale`: int8 for fixed, float32 for learned quantizers, which round it
//                to a level; none means 0. On the grid `offset` the offset, float32. A float's levels
//                have none: it is not read
//   outer_scale  float32, one per outer block, of a quantizer that has them; none: the largest that
//                its scales need
//   dtype        of the result: that of x, which is also the default, or for float32 x a half one
//
// On return (y, scale, zero_point): y has the shape of x, and every element is (q - zero_point) *
// scale (+ offset), rounded once to that dtype, for a level q; an element of x that is not finite
// comes out as NaN. scale and zero_point are what a quantizer that finds scales found, else empty.
// They count as constants: y is differentiable in x (4), straight through, and in learned scales (5)
// and zero points or offsets (6), whose rounding counts as the identity. Gradients of parameters are
// multiplied by the quantizer's factor; LSQ: 1 / sqrt(block size * quant_max). The mask is that of
// the rounded level; the LSQ paper (arXiv 1902.08153) masks the unrounded one. Sums run in a fixed
// order: the same bits every run, for any number of threads.
using FakeQuantized = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
QAT_API FakeQuantized fake_quantize(const at::Tensor& x, std::string_view quantizer,
                                    const std::optional<at::Tensor>& scale = {},
                                    const std::optional<at::Tensor>& zero_point = {},
                                    const std::optional<at::Tensor>& outer_scale = {},
                                    std::optional<at::ScalarType> dtype = std::nullopt);

// Gradients of x, scale and zero point; the last two are empty unless learned. A minmax quantizer
// may be given what its forward found, and finds it anew otherwise. No mask is kept.
QAT_API std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_backward(
    const at::Tensor& grad, const at::Tensor& x, std::string_view quantizer,
    const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& zero_point,
    const std::optional<at::Tensor>& outer_scale);

// The same, the gradient of x written over `grad`; returns the other two.
QAT_API std::tuple<at::Tensor, at::Tensor> fake_quantize_backward_inplace(
    at::Tensor& grad, const at::Tensor& x, std::string_view quantizer,
    const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& zero_point,
    const std::optional<at::Tensor>& outer_scale);

}  // namespace qat
