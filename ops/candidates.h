#pragma once

// What a block may have as parameters, of which the kernels take the one with the least error. Like
// affine.h, read by both compilers. Equation numbers refer to docs/numerics.md.

#include "qat/ops/qparams.h"

namespace qat {

// The fractions of a range that the search for a scale in float32, bfloat16 or float16 tries.
constexpr int kSearchSteps = 81;
QAT_HOST_DEVICE float search_fraction(int step) { return static_cast<float>(100 - step) / 100.0f; }

// The place of a positive number among those of its code, 0 being that of 0; and the number there.
constexpr int32_t kLeastNormalE4m3 = 0x3c800000;  // bits of 2^-6
QAT_HOST_DEVICE int32_t place_of(float number, ScaleCode code) {
  if (is_power_of_two(code)) return bits_of(number) >> 23;
  if (!is_e4m3(code)) return static_cast<int32_t>(number);
  const int32_t bits = bits_of(number);
  return bits < kLeastNormalE4m3 ? static_cast<int32_t>(number * 512.0f)
                                 : ((bits - kLeastNormalE4m3) >> 20) + 8;
}
QAT_HOST_DEVICE float number_at(int32_t place, ScaleCode code) {
  if (is_power_of_two(code)) return float_of(place << 23);
  if (!is_e4m3(code)) return static_cast<float>(place);
  return place < 8 ? static_cast<float>(place) * 0.001953125f
                   : float_of(((place - 8) << 20) + kLeastNormalE4m3);
}

// How many codes below and above that of a range are tried: down to a fifth of it; of floats up to a
// half more, where 4 of E2M1 rather than 6 is the largest element; of integers up to an eighth of the
// greatest, where elements may happen to lie nearer to the levels.
struct Reach {
  int below;
  int above;
};
QAT_HOST_DEVICE Reach reach_of(ScaleCode code) {
  if (is_power_of_two(code)) return {2, 1};
  if (is_e4m3(code)) return {19, 6};
  const int greatest = static_cast<int>(greatest_scale(code));
  return {greatest * 4 / 5, greatest / 8};
}

// The choices of one quantizer, in order: the first of equals is taken.
struct Candidates {
  Grid grid;
  Levels levels;
  ScaleCode code;
  bool searching;  // (10), else (9) and (9a)

  QAT_HOST_DEVICE int count() const {
    if (!searching) return code == ScaleCode::e4m3_four_over_six ? 2 : 1;
    if (!is_code(code)) return kSearchSteps;
    const Reach reach = reach_of(code);
    return (1 + reach.below + reach.above) * offsets();
  }

  // That of a block whose finite elements span [low, high].
  QAT_HOST_DEVICE QParams operator()(float low, float high, Outer outer, int step) const {
    if (step == 0) return qparams_of(low, high, grid, levels, code, outer);
    const float below = low < 0.0f ? low : 0.0f, above = high > 0.0f ? high : 0.0f;
    if (!searching) return {stored_scale(four_of(below, above), code, outer.scale), 0.0f};
    if (is_code(code)) return neighbour(below, above, outer, step);
    const float fraction = search_fraction(step);
    return qparams_of(low * fraction, high * fraction, grid, levels, code, outer);
  }

 private:
  // Offsets that are tried with each scale: their code, the next and the one before.
  QAT_HOST_DEVICE int offsets() const { return grid == Grid::offset ? 3 : 1; }

  // (9a)
  QAT_HOST_DEVICE static float four_of(float low, float high) {
    return (-low > high ? -low : high) / 4.0f;
  }

  QAT_HOST_DEVICE static int32_t clamp_place(int32_t place, int32_t least, int32_t greatest) {
    return place < least ? least : place > greatest ? greatest : place;
  }

  // Of a scale that is so many codes from that of the range, and of the range shrunk with it.
  QAT_HOST_DEVICE QParams neighbour(float low, float high, Outer outer, int step) const {
    const int at = step / offsets(), below = reach_of(code).below;
    const float real = scale_of(low, high, grid, levels);
    if (!(fabsf(real) > 0.0f)) return qparams_of(low, high, grid, levels, code, outer);
    const float magnitude =
        is_power_of_two(code)
            ? power_of_two((-low > high ? -low : high) / outer.scale, levels, code)
            : stored_magnitude(fabsf(real) / outer.scale, code);
    const int32_t place =
        clamp_place(place_of(magnitude, code) + (at <= below ? -at : at - below),
                    place_of(least_scale(code), code), place_of(greatest_scale(code), code));
    const float scale = number_at(place, code) * outer.scale;
    const float shrunk = scale / fabsf(real);
    const float fraction = at > 0 && shrunk < 1.0f ? shrunk : 1.0f;
    return {real < 0.0f && has_sign(code) ? -scale : scale,
            zero_of(low * fraction, scale, outer, step % offsets())};
  }

  QAT_HOST_DEVICE float zero_of(float low, float scale, Outer outer, int which) const {
    if (grid == Grid::asymmetric)
      return stored_zero_point(levels.min - low * (1.0f / scale), levels);
    if (grid != Grid::offset) return 0.0f;
    const float real = -low / outer.offset, greatest = greatest_scale(code);
    const float number =
        real > 0.0f ? round_to_code(real < greatest ? real : greatest, code) : 0.0f;
    const int32_t place = clamp_place(place_of(number, code) + (which == 2 ? -1 : which), 0,
                                      place_of(greatest, code));
    return -(number_at(place, code) * outer.offset);
  }
};

}  // namespace qat
