#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/ops/quantizer.h"

namespace qat {

// Scale and zero point of each block of `x`, as a quantizer's checkpoint stores them.
//
//   x            float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   quantizer    a Quantizer's text (quantizer.h); its mode does not matter
//   method       "minmax": from the smallest and largest finite element, numerics.md (9), (9a);
//                "mse": what is stored with the smallest squared rounding error, numerics.md (10): of
//                that range shrunk to the fractions 1, 0.99, ... 0.2 or, where scales are codes, of
//                the codes around that of the range
//                "absmean": the mean magnitude, of int2 narrow alone, numerics.md (9b)
//   importance   float32 [cols] or none: weights of the columns in the squared error of "mse", such
//                as their mean squared input; numerics.md (10)
//   outer_scale  float32, one per outer block, of a quantizer that has them; none: what its scales
//                need by (9), whatever the method
//   outer_offset the same for offsets
//
// On return scale float32 and zero_point int8, or the offset float32, both [grid_rows, grid_cols];
// zero points are 0 on a symmetric grid. Elements that are not finite are ignored. Not
// differentiable.
QAT_API std::tuple<at::Tensor, at::Tensor> choose_qparams(
    const at::Tensor& x, std::string_view quantizer, std::string_view method,
    const std::optional<at::Tensor>& importance = {},
    const std::optional<at::Tensor>& outer_scale = {},
    const std::optional<at::Tensor>& outer_offset = {});

// Scales and zero points [grid_rows, grid_cols] that are real numbers, such as learned ones, as a
// checkpoint will store them: the scale rounded to what it is stored in and kept invertible (7), the
// zero point rounded to a level of the grid (8), int8, 0 when there is none; an offset as the scale,
// float32 (8b). Not differentiable; fake_quantize passes gradients through it.
QAT_API std::tuple<at::Tensor, at::Tensor> round_qparams(
    const at::Tensor& scale, std::string_view quantizer,
    const std::optional<at::Tensor>& zero_point = {},
    const std::optional<at::Tensor>& outer_scale = {});

// The outer scales that choose_qparams finds for the scales of `x`, and for its offsets, the same by
// every method: float32 [outer_rows, outer_cols], the second empty on grids without offsets. A
// quantizer of scales that are shared with other tensors takes the largest of all. Not
// differentiable.
QAT_API std::tuple<at::Tensor, at::Tensor> choose_outer_scales(
    const at::Tensor& x, std::string_view quantizer, std::string_view method = "minmax",
    const std::optional<at::Tensor>& importance = {});

// Those that round_qparams finds for scales, or offsets, that are real numbers.
QAT_API at::Tensor outer_scales(const at::Tensor& scale, std::string_view quantizer);

}  // namespace qat
