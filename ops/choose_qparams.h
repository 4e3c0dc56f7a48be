#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace qat {

// Scale and zero point of each block of `x`.
//
//   x            float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   bits         2 to 8
//   grid         "narrow", "full", "signed" or "asymmetric" (qparams.h)
//   method       "minmax": from the smallest and largest finite element, numerics.md (9);
//                "mse": that range shrunk to the fraction 1, 0.99, ... 0.2 whose squared rounding
//                error is smallest, the widest winning a tie, numerics.md (10)
//   scale_dtype  float32, bfloat16 or float16, to which the scale is rounded before it is judged
//   importance   float32 [cols] or none: weights of the columns in the squared error of "mse", such
//   as
//                their mean squared input; numerics.md (10)
//
// On return scale float32 and zero_point int8, both [grid_rows, grid_cols]; zero points are 0 on a
// symmetric grid. Elements that are not finite are ignored. Not differentiable.
std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, at::IntArrayRef block,
                                                  int64_t bits, std::string_view grid,
                                                  std::string_view method,
                                                  at::ScalarType scale_dtype,
                                                  const std::optional<at::Tensor>& importance = {});

// Learned parameters as a checkpoint will store them: the scale rounded to `scale_dtype` and kept
// invertible (7), the zero point rounded to a level of the grid (8), int8, 0 when there is none.
// Not differentiable; fake_quantize_learned passes gradients through it.
std::tuple<at::Tensor, at::Tensor> round_qparams(const at::Tensor& scale,
                                                 const std::optional<at::Tensor>& zero_point,
                                                 int64_t quant_min, int64_t quant_max,
                                                 at::ScalarType scale_dtype);

// Called by every backend before it computes. True for "mse".
bool check_choose_qparams(const at::Tensor& x, at::IntArrayRef block, int64_t bits,
                          std::string_view method, at::ScalarType scale_dtype,
                          const std::optional<at::Tensor>& importance);
void check_round_qparams(const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                         int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype);

// The fractions that the search tries, widest first.
constexpr int kSearchSteps = 81;
constexpr float search_fraction(int step) { return static_cast<float>(100 - step) / 100.0f; }

}  // namespace qat
