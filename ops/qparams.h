#pragma once

// From the range of a block to its scale and zero point. Like affine.h, read by both compilers and
// written nowhere else. Equation numbers refer to docs/numerics.md.

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "qat/ops/affine.h"

namespace qat {

// How the levels are laid over the range of a block; `b` is the bit width, `a` the largest |x|.
enum class Grid : int8_t {
  narrow,   // a / (2^(b-1) - 1); the lowest level is unused, nothing is ever clipped
  full,     // a / ((2^b - 1) / 2)
  extreme,  // the element of largest magnitude, with its sign, lands on -2^(b-1); scale may be < 0
  e4m3,     // a / 448; levels are the finite numbers of a float of 4 exponent and 3 mantissa bits
  e5m2,     // a / 57344; of 5 and 2
  asymmetric,  // (max - min) / (2^b - 1) over a range that contains 0, with an integer zero point
};

struct QParams {
  float scale;
  float zero_point;
};

// The grids of ops/float8.h. Their ranges go beyond those of every integer grid, by which kernels
// that are given only a range tell them apart.
QAT_HOST_DEVICE bool is_float8(Grid grid) { return grid == Grid::e4m3 || grid == Grid::e5m2; }
QAT_HOST_DEVICE bool is_float8(QuantRange range) { return range.max > 127.0f; }

QAT_HOST_DEVICE QuantRange range_of(Grid grid, int bits) {
  if (grid == Grid::e4m3) return {-448.0f, 448.0f};
  if (grid == Grid::e5m2) return {-57344.0f, 57344.0f};
  const float half = static_cast<float>(1 << (bits - 1));
  return {grid == Grid::narrow ? 1.0f - half : -half, half - 1.0f};
}

// The smallest and the largest magnitude that a stored scale may take: the least normal number of
// the dtype (for float32 and bfloat16 with room to invert it), because fp16 subnormals lose bits.
QAT_HOST_DEVICE float least_scale(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Half ? 6.103515625e-05f
                                        : 1.2037062152420224e-35f;  // 2^-14, 2^-116
}
QAT_HOST_DEVICE float greatest_scale(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Half       ? 65504.0f
         : dtype == c10::ScalarType::BFloat16 ? 3.3895313892515355e+38f
                                              : FLT_MAX;
}

QAT_HOST_DEVICE float round_to_dtype(float x, c10::ScalarType dtype) {
  if (dtype == c10::ScalarType::BFloat16) return static_cast<float>(c10::BFloat16(x));
  if (dtype == c10::ScalarType::Half) return static_cast<float>(c10::Half(x));
  return x;
}

// (7b) Whether float16 scales of an asymmetric grid keep 7 significant bits: at most 4 bits wide,
// every product of such a scale with a level is a float16 number as well. The least level of a
// block, which GGUF's Q4_1 stores beside the scale, is then exact.
QAT_HOST_DEVICE bool has_exact_offsets(QuantRange range, c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Half && range.max - range.min <= 15.0f;
}

// A positive number of float16's range to 7 significant bits, ties to even.
QAT_HOST_DEVICE float round_to_7_bits(float x) {
  if (x > 65024.0f) return 65024.0f;  // the greatest of them
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 0xFFFFu + ((bits >> 17) & 1u)) & ~0x1FFFFu;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// (7) The scale as a checkpoint of `dtype` will hold it. Zero and NaN become 1, since a block
// without a range has nothing to divide by; anything else keeps its sign and stays invertible.
QAT_HOST_DEVICE float stored_scale(float scale, c10::ScalarType dtype, bool exact_offsets = false) {
  const float magnitude = fabsf(scale);
  if (!(magnitude > 0.0f)) return 1.0f;
  const float least = least_scale(dtype);
  const float greatest = greatest_scale(dtype);
  const float bounded = magnitude < least ? least : magnitude > greatest ? greatest : magnitude;
  const float rounded = exact_offsets ? round_to_7_bits(bounded) : round_to_dtype(bounded, dtype);
  return scale < 0.0f ? -rounded : rounded;
}

// (8) A learned zero point as it will be stored: the nearest level of the grid.
QAT_HOST_DEVICE float stored_zero_point(float zero_point, QuantRange range) {
  return affine::clamp_level(round_to_even(zero_point), range);
}

// (9) Scale and zero point of a block whose finite elements span [low, high].
QAT_HOST_DEVICE QParams qparams_of(float low, float high, Grid grid, int bits,
                                   c10::ScalarType dtype) {
  const QuantRange range = range_of(grid, bits);
  const float below = low < 0.0f ? low : 0.0f;
  const float above = high > 0.0f ? high : 0.0f;
  if (grid == Grid::asymmetric) {
    // Halved before the subtraction, so that the widest float32 range does not overflow.
    const float half_steps = (range.max - range.min) * 0.5f;
    const float scale = stored_scale((above * 0.5f - below * 0.5f) / half_steps, dtype,
                                     has_exact_offsets(range, dtype));
    return {scale, stored_zero_point(range.min - below * (1.0f / scale), range)};
  }
  const float absmax = -below > above ? -below : above;
  if (grid == Grid::narrow || is_float8(grid))
    return {stored_scale(absmax / range.max, dtype), 0.0f};
  if (grid == Grid::full) return {stored_scale(absmax / (range.max + 0.5f), dtype), 0.0f};
  const float sign = -below >= above ? 1.0f : -1.0f;
  return {stored_scale(sign * absmax / -range.min, dtype), 0.0f};
}

// Whether the parameters of (9) leave no level of their own block outside the grid, so that
// clamping changes nothing and the straight-through gradient is the identity. On the narrow grid,
// unless the scale was capped, which float16 may need.
QAT_HOST_DEVICE bool never_clips(Grid grid, c10::ScalarType dtype) {
  return (grid == Grid::narrow || is_float8(grid)) && dtype != c10::ScalarType::Half;
}

}  // namespace qat
