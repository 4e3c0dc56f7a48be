#pragma once

// The only place where a real number meets an integer level. The CPU kernels, the CUDA kernels, the
// backward passes, the exporters and the verifier all call these functions, so that they cannot
// disagree. Equation numbers refer to docs/numerics.md.
//
// Levels are carried as float: every level of at most 8 bits is exact there, the arithmetic
// vectorises, and clamping before any cast to an integer lets a huge value saturate.
//
// Both compilers must leave the expressions alone: the host compiles with -ffp-contract=off, the
// device with -fmad=false, and neither with fast math.

#include <cfloat>
#include <cmath>

#ifdef __CUDACC__
#define QAT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QAT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace qat {

// The inclusive ends of an integer grid.
struct QuantRange {
  float min;
  float max;
};

QAT_HOST_DEVICE bool is_finite(float x) { return fabsf(x) <= FLT_MAX; }

QAT_HOST_DEVICE float round_to_even(float x) { return rintf(x); }

namespace affine {

// (1) Where `x` falls on the grid, before clamping. The zero point joins after the rounding: no
// product stands next to a sum, and -0 becomes +0.
QAT_HOST_DEVICE float level_of(float x, float inv_scale, float zero_point) {
  return round_to_even(x * inv_scale) + zero_point;
}

// (2) NaN lands on `range.min`. Written as comparisons because they vectorise to one max and one
// min instruction; fmaxf does not.
QAT_HOST_DEVICE float clamp_level(float level, QuantRange range) {
  const float above = level > range.min ? level : range.min;
  return above < range.max ? above : range.max;
}

// (1) and (2).
QAT_HOST_DEVICE float quantize(float x, float inv_scale, float zero_point, QuantRange range) {
  return clamp_level(level_of(x, inv_scale, zero_point), range);
}

// (3)
QAT_HOST_DEVICE float dequantize(float q, float scale, float zero_point) {
  return (q - zero_point) * scale;
}

// (1) to (3). A NaN or an infinity comes out as NaN: it must not hide behind a legal level.
QAT_HOST_DEVICE float fake_quantize(float x, float scale, float inv_scale, float zero_point,
                                    QuantRange range) {
  const float y = dequantize(quantize(x, inv_scale, zero_point, range), scale, zero_point);
  return is_finite(x) ? y : NAN;
}

// (4) Whether the straight-through gradient passes: the rounded level lies on the grid. False for
// NaN and for infinities.
QAT_HOST_DEVICE bool is_inside(float level, QuantRange range) {
  return level >= range.min && level <= range.max;
}

// (4)
QAT_HOST_DEVICE float straight_through(float grad, float x, float inv_scale, float zero_point,
                                       QuantRange range) {
  return is_inside(level_of(x, inv_scale, zero_point), range) ? grad : 0.0f;
}

// (5) What one element adds to the gradient of its block's scale.
QAT_HOST_DEVICE float scale_gradient(float grad, float x, float inv_scale, float zero_point,
                                     QuantRange range) {
  const float u = x * inv_scale;
  const float rounded = round_to_even(u);
  const float level = rounded + zero_point;
  const float slope =
      is_inside(level, range) ? rounded - u : clamp_level(level, range) - zero_point;
  return is_finite(x) ? grad * slope : 0.0f;
}

// (6) What one element adds to the gradient of its block's zero point.
QAT_HOST_DEVICE float zero_point_gradient(float grad, float x, float scale, float inv_scale,
                                          float zero_point, QuantRange range) {
  const bool clipped = !is_inside(level_of(x, inv_scale, zero_point), range);
  return clipped && is_finite(x) ? grad * -scale : 0.0f;
}

}  // namespace affine
}  // namespace qat
