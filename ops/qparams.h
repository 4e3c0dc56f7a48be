#pragma once

// From the range of a block to its scale and zero point. Like affine.h, read by both compilers and
// written nowhere else. Equation numbers refer to docs/numerics.md.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "qat/ops/affine.h"

namespace qat {

// How the levels are laid over the range of a block; `b` is the bit width, `a` the largest |x|.
enum class Grid : int8_t {
  narrow,   // a / (2^(b-1) - 1); the lowest level is unused, nothing is ever clipped
  full,     // a / ((2^b - 1) / 2)
  extreme,  // the element of largest magnitude, with its sign, lands on -2^(b-1); scale may be < 0
  asymmetric,  // (max - min) / (2^b - 1) over a range that contains 0, with an integer zero point
  offset,  // (max - min) / (2^b - 1), levels 0 ... 2^b - 1 above an offset that is a real number
  iq4_nl,  // as extreme, on the sixteen levels of a table: the element of largest magnitude on -127
  // The finite numbers of a float of so many exponent and mantissa bits: a / its largest.
  e2m1,
  e2m3,
  e3m2,
  e4m3,
  e5m2,
};

QAT_HOST_DEVICE bool is_float(Grid grid) { return grid >= Grid::e2m1; }
QAT_HOST_DEVICE bool is_float8(Grid grid) { return grid == Grid::e4m3 || grid == Grid::e5m2; }
// Whether the levels have a width of their own, and no zero point.
QAT_HOST_DEVICE bool is_named(Grid grid) { return grid >= Grid::iq4_nl; }
// Whether the scale of a block has the sign of its largest element.
QAT_HOST_DEVICE bool has_signed_scales(Grid grid) {
  return grid == Grid::extreme || grid == Grid::iq4_nl;
}
// Whether parameters depend on both ends of a range, rather than on its largest magnitude.
QAT_HOST_DEVICE bool needs_ends(Grid grid) {
  return has_signed_scales(grid) || grid == Grid::asymmetric || grid == Grid::offset;
}

QAT_HOST_DEVICE Levels levels_of(Grid grid, int bits) {
  switch (grid) {
    case Grid::e2m1:
      return {-6.0f, 6.0f, 1, 0};
    case Grid::e2m3:
      return {-7.5f, 7.5f, 3, 0};
    case Grid::e3m2:
      return {-28.0f, 28.0f, 2, -2};
    case Grid::e4m3:
      return {-448.0f, 448.0f, 3, -6};
    case Grid::e5m2:
      return {-57344.0f, 57344.0f, 2, -14};
    case Grid::iq4_nl:
      return {table_level(0), table_level(kTableSize - 1), 0, 0, true};
    case Grid::offset:
      return {0.0f, static_cast<float>((1 << bits) - 1)};
    default:
      break;
  }
  const float half = static_cast<float>(1 << (bits - 1));
  return {grid == Grid::narrow ? 1.0f - half : -half, half - 1.0f};
}

// What a checkpoint stores a scale in. All but the first three are codes of at most 8 bits, whose
// scale may be a multiple of an outer one.
enum class ScaleCode : int8_t {
  float32,
  bfloat16,
  float16,
  e8m0_floor,  // powers of two, by the rules of OCP MX for the range of a block: of the largest
  e8m0_even,   // magnitude, its exponent; that of it rounded to the elements' mantissa
  e8m0_ceil,   // the least power of two that clips nothing
  e4m3,
  int6,                // 1 ... 63
  int8,                // -127 ... 127 but 0
  int4,                // 1 ... 15
  int6_signed,         // -31 ... 31 but 0
  e4m3_four_over_six,  // as e4m3; a minmax block is found by (9a)
};

QAT_HOST_DEVICE bool is_power_of_two(ScaleCode code) {
  return code == ScaleCode::e8m0_floor || code == ScaleCode::e8m0_even ||
         code == ScaleCode::e8m0_ceil;
}

QAT_HOST_DEVICE bool is_e4m3(ScaleCode code) {
  return code == ScaleCode::e4m3 || code == ScaleCode::e4m3_four_over_six;
}

// Whether it is a code rather than a number of a dtype.
QAT_HOST_DEVICE bool is_code(ScaleCode code) { return code >= ScaleCode::e8m0_floor; }

// Whether a scale may be negative. Hardware and files that know these codes read them as positive.
QAT_HOST_DEVICE bool has_sign(ScaleCode code) {
  return !is_power_of_two(code) && !is_e4m3(code) && code != ScaleCode::int6 &&
         code != ScaleCode::int4;
}

// The smallest and the largest magnitude that a stored scale may take: the least normal number of
// float16, because its subnormals lose bits; the least code; and otherwise the least number with
// room to invert it.
QAT_HOST_DEVICE float least_scale(ScaleCode code) {
  switch (code) {
    case ScaleCode::float16:
      return 6.103515625e-05f;  // 2^-14
    case ScaleCode::e4m3:
    case ScaleCode::e4m3_four_over_six:
      return 0.001953125f;  // 2^-9
    case ScaleCode::int6:
    case ScaleCode::int8:
    case ScaleCode::int4:
    case ScaleCode::int6_signed:
      return 1.0f;
    default:
      return 1.2037062152420224e-35f;  // 2^-116
  }
}
QAT_HOST_DEVICE float greatest_scale(ScaleCode code) {
  switch (code) {
    case ScaleCode::float32:
      return FLT_MAX;
    case ScaleCode::bfloat16:
      return 3.3895313892515355e+38f;
    case ScaleCode::float16:
      return 65504.0f;
    case ScaleCode::e4m3:
    case ScaleCode::e4m3_four_over_six:
      return 448.0f;
    case ScaleCode::int6:
      return 63.0f;
    case ScaleCode::int8:
      return 127.0f;
    case ScaleCode::int4:
      return 15.0f;
    case ScaleCode::int6_signed:
      return 31.0f;
    default:
      return 1.7014118346046923e+38f;  // 2^127
  }
}

// (7d) The number that the largest scale under an outer one has. Half as much again, which (9a) may
// take, is a number as well.
QAT_HOST_DEVICE float largest_under_outer(ScaleCode code) {
  return code == ScaleCode::e4m3_four_over_six ? 256.0f : greatest_scale(code);
}

// The nearest number of a code, ties to even, but of powers of two up; `x` lies between the two bounds above.
QAT_HOST_DEVICE float round_to_code(float x, ScaleCode code) {
  switch (code) {
    case ScaleCode::float32:
      return x;
    case ScaleCode::bfloat16:
      return static_cast<float>(c10::BFloat16(x));
    case ScaleCode::float16:
      return static_cast<float>(c10::Half(x));
    case ScaleCode::e4m3:
    case ScaleCode::e4m3_four_over_six:
      return nearest_level(x, levels_of(Grid::e4m3, 8));
    case ScaleCode::int6:
    case ScaleCode::int8:
    case ScaleCode::int4:
    case ScaleCode::int6_signed:
      return round_to_even(x);
    default:  // a power of two: 1.5 times one goes up, as torch's cast has it
      return float_of((bits_of(x) + kUpperHalf) & kExponent);
  }
}

// (7b) Whether float16 scales of an asymmetric grid keep 7 significant bits: at most 4 bits wide,
// every product of such a scale with a level is a float16 number as well. The least level of a
// block, which GGUF's Q4_1 stores beside the scale, is then exact.
QAT_HOST_DEVICE bool has_exact_offsets(const Levels& levels, ScaleCode code) {
  return code == ScaleCode::float16 && levels.max - levels.min <= 15.0f;
}

// A positive number of float16's range to 7 significant bits, ties to even.
QAT_HOST_DEVICE float round_to_7_bits(float x) {
  if (x > 65024.0f) return 65024.0f;  // the greatest of them
  const int32_t bits = bits_of(x);
  return float_of((bits + 0xFFFF + ((bits >> 17) & 1)) & ~0x1FFFF);
}

// The number that a positive magnitude is stored as.
QAT_HOST_DEVICE float stored_magnitude(float magnitude, ScaleCode code,
                                       bool exact_offsets = false) {
  const float least = least_scale(code), greatest = greatest_scale(code);
  const float bounded = magnitude < least ? least : magnitude > greatest ? greatest : magnitude;
  return exact_offsets ? round_to_7_bits(bounded) : round_to_code(bounded, code);
}

// (7) The scale as a checkpoint will hold it: a number of `code` times `outer`. Zero and NaN become
// 1, since a block without a range has nothing to divide by; anything else stays invertible and keeps
// its sign, or becomes the least scale where the code has none.
QAT_HOST_DEVICE float stored_scale(float scale, ScaleCode code, float outer = 1.0f,
                                   bool exact_offsets = false) {
  const bool negative = scale < 0.0f, keeps_sign = has_sign(code);
  const float magnitude = negative && keeps_sign ? -(scale / outer) : scale / outer;
  if (!(fabsf(magnitude) > 0.0f)) return outer;
  const float rounded = stored_magnitude(magnitude, code, exact_offsets);
  return (negative && keeps_sign ? -rounded : rounded) * outer;
}

struct QParams {
  float scale;
  float zero_point;  // on the grid of offsets, the offset
};

// What the scale of a block, and its offset, are multiples of.
struct Outer {
  float scale = 1.0f;
  float offset = 1.0f;
};

// (8) A learned zero point as it will be stored: the nearest level of the grid.
QAT_HOST_DEVICE float stored_zero_point(float zero_point, const Levels& levels) {
  return affine::clamp_level(round_to_even(zero_point), levels);
}

// (8b) An offset as it will be stored: a number of `code` times `outer`, 0 among them; a code without
// a sign counts down from 0.
QAT_HOST_DEVICE float stored_offset(float offset, ScaleCode code, float outer = 1.0f) {
  const float magnitude = fabsf(offset / outer);
  if (!(magnitude > 0.0f) || (offset > 0.0f && !has_sign(code))) return 0.0f;
  const float greatest = greatest_scale(code);
  const float rounded = round_to_code(magnitude > greatest ? greatest : magnitude, code);
  return (offset < 0.0f ? -rounded : rounded) * outer;
}

// (7c) The power of two for a block whose largest magnitude is `absmax`.
QAT_HOST_DEVICE float power_of_two(float absmax, const Levels& levels, ScaleCode code) {
  if (!(absmax > 0.0f)) return 1.0f;
  int32_t bits;
  if (code == ScaleCode::e8m0_ceil) {
    bits = bits_of(absmax / levels.max) + 0x007fffff;  // up, unless it is one
  } else {
    const int32_t half_step = code == ScaleCode::e8m0_even ? kUpperHalf >> levels.mantissa_bits : 0;
    bits = bits_of(absmax) + half_step - (bits_of(levels.max) & kExponent) + bits_of(1.0f);
  }
  const int32_t least = bits_of(least_scale(code)), greatest = bits_of(greatest_scale(code));
  return float_of((bits < least ? least : bits > greatest ? greatest : bits) & kExponent);
}

// (9) The scale of a block whose finite elements and 0 span [low, high], before it is stored; 0 for a
// block of zeros.
QAT_HOST_DEVICE float scale_of(float low, float high, Grid grid, const Levels& levels) {
  // Halved before the subtraction, so that the widest float32 range does not overflow.
  if (grid == Grid::asymmetric || grid == Grid::offset)
    return (high * 0.5f - low * 0.5f) / ((levels.max - levels.min) * 0.5f);
  const float absmax = -low > high ? -low : high;
  if (grid == Grid::full) return absmax / (levels.max + 0.5f);
  if (has_signed_scales(grid)) return (-low >= high ? absmax : -absmax) / -levels.min;
  return absmax / levels.max;
}

// The same beside the offset, for scales that are stored when all of them are known.
QAT_HOST_DEVICE QParams unstored_qparams(float low, float high, Grid grid, const Levels& levels) {
  const float below = low < 0.0f ? low : 0.0f, above = high > 0.0f ? high : 0.0f;
  return {scale_of(below, above, grid, levels), grid == Grid::offset ? below : 0.0f};
}

// (9) Scale and zero point, as stored, of a block whose finite elements span [low, high].
QAT_HOST_DEVICE QParams qparams_of(float low, float high, Grid grid, const Levels& levels,
                                   ScaleCode code, Outer outer = {}) {
  const float below = low < 0.0f ? low : 0.0f;
  const float above = high > 0.0f ? high : 0.0f;
  if (is_power_of_two(code))
    return {
        power_of_two((-below > above ? -below : above) / outer.scale, levels, code) * outer.scale,
        0.0f};
  const bool exact_offsets = grid == Grid::asymmetric && has_exact_offsets(levels, code);
  const float scale =
      stored_scale(scale_of(below, above, grid, levels), code, outer.scale, exact_offsets);
  if (grid == Grid::asymmetric)
    return {scale, stored_zero_point(levels.min - below * (1.0f / scale), levels)};
  return {scale, grid == Grid::offset ? stored_offset(below, code, outer.offset) : 0.0f};
}

// Whether the parameters of (9) leave no level of their own block outside the grid, so that
// clamping changes nothing and the straight-through gradient is the identity. So where the largest
// magnitude is the last level, unless the scale was capped or lost bits as a subnormal, which
// float16 and E4M3 may need, or rounded down to a power of two.
QAT_HOST_DEVICE bool never_clips(Grid grid, ScaleCode code) {
  return (grid == Grid::narrow || is_float(grid)) &&
         (code == ScaleCode::float32 || code == ScaleCode::bfloat16 ||
          code == ScaleCode::e8m0_ceil);
}

}  // namespace qat
