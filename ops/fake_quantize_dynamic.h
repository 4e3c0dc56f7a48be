#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace qat {

// Finds the scale of each block from its smallest and largest finite element and rounds the block
// to it, in one pass. numerics.md (1) to (3), (7), (9).
//
//   x            float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   bits         2 to 8
//   grid         "narrow", "full", "signed" or "asymmetric" (qparams.h)
//   scale_dtype  float32, bfloat16 or float16: what a checkpoint will store. The scale is rounded
//                to it before it is used.
//   dtype        of y, as in fake_quantize
//
// On return (y, scale, zero_point): y as from fake_quantize; scale float32 and zero_point int8, one
// per block, zero points being 0 on a symmetric grid. Differentiable in `x` through y only: the
// scale counts as a constant. On the narrow grid nothing is clipped, so the backward is the
// identity.
std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype = std::nullopt);

// Called by every backend before it computes.
void check_fake_quantize_dynamic(const at::Tensor& x, at::IntArrayRef block, int64_t bits,
                                 at::ScalarType scale_dtype,
                                 std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace qat
