#pragma once

// The only place where a real number meets a level. The CPU kernels, the CUDA kernels, the backward
// passes, the exporters and the verifier all call these functions, so that they cannot disagree.
// Equation numbers refer to docs/numerics.md.
//
// Levels are carried as float: every level of at most 8 bits is exact there, the arithmetic
// vectorises, and clamping before any cast to an integer lets a huge value saturate.
//
// Both compilers must leave the expressions alone: the host compiles with -ffp-contract=off, the
// device with -fmad=false, and neither with fast math.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __CUDACC__
#define QAT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QAT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace qat {

// What codes stand for, between two ends that are levels themselves: whole numbers, some of them, as
// a table has it, or the numbers of a float of few bits, whose step is 2^-mantissa_bits of the power
// of two below it, but not less than that of its least exponent.
struct Levels {
  float min;
  float max;
  int32_t mantissa_bits = 0;   // 0: whole numbers
  int32_t least_exponent = 0;  // of the normal numbers of a float
  bool table = false;          // those of table_level() below

  QAT_HOST_DEVICE bool whole() const { return mantissa_bits == 0 && !table; }
};

// The same with the kind known to the compiler: with_kind() below makes them, kernels take them.
struct WholeLevels {
  float min;
  float max;
};
struct TableLevels {
  float min;
  float max;
  float lowest;   // the smallest number that goes to the first level
  float highest;  // and the largest that goes to the last
};
struct FloatLevels {
  float min;
  float max;
  int32_t least;   // bits of the float32 2^least_exponent
  int32_t anchor;  // added to the bits of a power of two gives 1.5 * 2^23 steps
  float edge;      // the largest magnitude that is rounded to a level between the ends
};

QAT_HOST_DEVICE WholeLevels whole_levels(const Levels& levels) { return {levels.min, levels.max}; }
// The levels of llama.cpp's IQ4_NL and IQ4_XS, which lie closer together around 0.
constexpr int kTableSize = 16;
QAT_HOST_DEVICE constexpr float table_level(int code) {
  constexpr float kLevels[kTableSize] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f,
                                         -22.0f,  -10.0f,  1.0f,   13.0f,  25.0f,  38.0f,
                                         53.0f,   69.0f,   89.0f,  113.0f};
  return kLevels[code];
}
// From a level to the next, and halfway there.
QAT_HOST_DEVICE constexpr float table_gap(int code) {
  return table_level(code + 1) - table_level(code);
}
QAT_HOST_DEVICE constexpr float table_border(int code) {
  return table_level(code) + table_gap(code) / 2.0f;
}

QAT_HOST_DEVICE TableLevels table_levels(const Levels& levels) {
  constexpr int kLast = kTableSize - 2;
  return {levels.min, levels.max, levels.min - table_gap(0) / 2.0f,
          levels.max + table_gap(kLast) / 2.0f};
}

QAT_HOST_DEVICE bool is_finite(float x) { return fabsf(x) <= FLT_MAX; }

QAT_HOST_DEVICE float round_to_even(float x) { return rintf(x); }

QAT_HOST_DEVICE int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
QAT_HOST_DEVICE float float_of(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// The bits of an exponent of float32, and of the upper half of its mantissa.
constexpr int32_t kExponent = 0x7f800000;
constexpr int32_t kUpperHalf = 0x00400000;

namespace affine {

// A number to the nearest multiple of its step, ties to even. A number of at least 2^22 steps has no
// place for less than a step: adding one and taking it away rounds.
QAT_HOST_DEVICE float round_float(float u, const FloatLevels& levels) {
  const int32_t exponent = bits_of(u) & kExponent;
  const int32_t power = exponent > levels.least ? exponent : levels.least;
  const float anchor = float_of(power + levels.anchor);
  return (u + anchor) - anchor;
}

// A number to the nearest of the table, halfway to the upper one: as many gaps above the first level
// as borders are passed. All of it is whole, and exact in any order.
template <int... kCodes>
QAT_HOST_DEVICE float round_to_table(float u, std::integer_sequence<int, kCodes...>) {
  return (table_level(0) + ... + (u >= table_border(kCodes) ? table_gap(kCodes) : 0.0f));
}

}  // namespace affine

QAT_HOST_DEVICE FloatLevels float_levels(const Levels& levels) {
  FloatLevels kind{levels.min, levels.max, (levels.least_exponent + 127) << 23,
                   ((23 - levels.mantissa_bits) << 23) | kUpperHalf, 0.0f};
  // Halfway to the next number, which goes there or stays.
  const float power = float_of(bits_of(levels.max) & kExponent);
  const float tie = levels.max + power / static_cast<float>(2 << levels.mantissa_bits);
  const bool stays = affine::round_float(tie, kind) == levels.max;
  kind.edge = stays ? tie : float_of(bits_of(tie) - 1);
  return kind;
}

// Calls body with the levels as one of the three.
template <typename Body>
QAT_HOST_DEVICE decltype(auto) with_kind(const Levels& levels, const Body& body) {
  if (levels.table) return body(table_levels(levels));
  return levels.whole() ? body(whole_levels(levels)) : body(float_levels(levels));
}

namespace affine {

// NaN lands on the lowest. Written as comparisons because they vectorise to one max and one min
// instruction; fmaxf does not.
QAT_HOST_DEVICE float clamp(float level, float min, float max) {
  const float above = level > min ? level : min;
  return above < max ? above : max;
}

// (2)
template <typename Kind>
QAT_HOST_DEVICE float clamp_level(float level, const Kind& levels) {
  return clamp(level, levels.min, levels.max);
}

// (1a) The level nearest to `u` on a grid without ends, ties to even. A float beyond twice the ends
// stays there, where nothing overflows.
QAT_HOST_DEVICE float nearest_unbounded(float u, const WholeLevels&) { return round_to_even(u); }
QAT_HOST_DEVICE float nearest_unbounded(float u, const FloatLevels& levels) {
  return round_float(clamp(u, 2.0f * levels.min, 2.0f * levels.max), levels);
}
// A table has no more levels beyond its ends, where numbers stay what they are, as NaN does.
QAT_HOST_DEVICE float nearest_unbounded(float u, const TableLevels& levels) {
  const float level = round_to_table(u, std::make_integer_sequence<int, kTableSize - 1>());
  return u >= levels.lowest && u <= levels.highest ? level : u;
}

// (1) Where `x` falls on the grid, before clamping. The zero point joins after the rounding: no
// product stands next to a sum, and -0 becomes +0.
template <typename Kind>
QAT_HOST_DEVICE float level_of(float x, float inv_scale, float zero_point, const Kind& levels) {
  return nearest_unbounded(x * inv_scale, levels) + zero_point;
}

// (1) and (2). The ends of a float are levels: it is clamped first, which is quicker. It has no zero
// point.
template <typename Kind>
QAT_HOST_DEVICE float quantize(float x, float inv_scale, float zero_point, const Kind& levels) {
  return clamp_level(level_of(x, inv_scale, zero_point, levels), levels);
}
QAT_HOST_DEVICE float quantize(float x, float inv_scale, float, const FloatLevels& levels) {
  return round_float(clamp_level(x * inv_scale, levels), levels);
}

// (3)
QAT_HOST_DEVICE float dequantize(float q, float scale, float zero_point) {
  return (q - zero_point) * scale;
}

// (1) to (3). A NaN or an infinity comes out as NaN: it must not hide behind a legal level.
template <typename Kind>
QAT_HOST_DEVICE float fake_quantize(float x, float scale, float inv_scale, float zero_point,
                                    const Kind& levels) {
  const float y = dequantize(quantize(x, inv_scale, zero_point, levels), scale, zero_point);
  return is_finite(x) ? y : NAN;
}

// (4) Whether the straight-through gradient passes: the rounded level lies on the grid. False for
// NaN and for infinities.
template <typename Kind>
QAT_HOST_DEVICE bool is_inside(float level, const Kind& levels) {
  return level >= levels.min && level <= levels.max;
}

// (4). A float has no zero point, and its edge says what it rounds to a level.
template <typename Kind>
QAT_HOST_DEVICE float straight_through(float grad, float x, float inv_scale, float zero_point,
                                       const Kind& levels) {
  return is_inside(level_of(x, inv_scale, zero_point, levels), levels) ? grad : 0.0f;
}
QAT_HOST_DEVICE float straight_through(float grad, float x, float inv_scale, float,
                                       const FloatLevels& levels) {
  return fabsf(x * inv_scale) <= levels.edge ? grad : 0.0f;
}

// (5) What one element adds to the gradient of its block's scale.
template <typename Kind>
QAT_HOST_DEVICE float scale_gradient(float grad, float x, float inv_scale, float zero_point,
                                     const Kind& levels) {
  const float u = x * inv_scale;
  const float rounded = nearest_unbounded(u, levels);
  const float level = rounded + zero_point;
  const float slope =
      is_inside(level, levels) ? rounded - u : clamp_level(level, levels) - zero_point;
  return is_finite(x) ? grad * slope : 0.0f;
}

// (6) What one element adds to the gradient of its block's zero point.
template <typename Kind>
QAT_HOST_DEVICE float zero_point_gradient(float grad, float x, float scale, float inv_scale,
                                          float zero_point, const Kind& levels) {
  const bool clipped = !is_inside(level_of(x, inv_scale, zero_point, levels), levels);
  return clipped && is_finite(x) ? grad * -scale : 0.0f;
}

}  // namespace affine

// The level nearest to `u`, ties to even, saturating; NaN becomes the lowest.
QAT_HOST_DEVICE float nearest_level(float u, const Levels& levels) {
  return with_kind(levels, [=](const auto& kind) { return affine::quantize(u, 1.0f, 0.0f, kind); });
}

}  // namespace qat
