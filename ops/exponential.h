#pragma once

// The exponential and the logarithm that kernels share: by additions, multiplications, divisions and
// bits alone, so that they give the same result with every set of instructions and on a GPU, where
// those of libraries differ in a last bit, and loops over the exponential are vectorised.

#include "qat/ops/affine.h"

namespace qat {

// e^x for x <= 0, within 2^-22 of itself; 0 below -87, where float32 has few bits left. x = n ln 2 + r
// with |r| <= ln 2 / 2, of which Taylor's polynomial of degree 7 is 6e-9 off. NaN stays NaN.
QAT_HOST_DEVICE float exponential(float x) {
  constexpr float kLeast = -87.0f;
  constexpr float kPlace = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  constexpr float kUpper = 0.693145751953125f,
                  kLower = 1.42860682e-6f;  // ln 2; n * kUpper is exact
  const float bounded = x < kLeast ? kLeast : x;
  const float placed = bounded * 1.44269504f + kPlace;
  const float n = placed - kPlace;
  const float r = bounded - n * kUpper - n * kLower;
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  // 2^n: the last bits of `placed` are those of n.
  const uint32_t exponent = static_cast<uint32_t>(bits_of(placed)) << 23;
  const float power = float_of(static_cast<int32_t>(exponent + (127u << 23)));
  return x < kLeast ? 0.0f : sum * power;
}

// ln x for x from 2^-100 to 2^100, within three steps of float64. NaN stays NaN.
QAT_HOST_DEVICE double logarithm(double x) {
  // x = m * 2^n with m from 3/4 to 3/2, and ln m = 2 artanh f with f = (m - 1) / (m + 1), |f| <= 1/5.
  int32_t n = (bits_of(static_cast<float>(x)) >> 23) - 127;
  double m = x * static_cast<double>(float_of((127 - n) * (1 << 23)));
  if (m > 1.5) {
    m *= 0.5;
    ++n;
  }
  const double f = (m - 1.0) / (m + 1.0), square = f * f;
  double sum = 1.0 / 21.0;
  for (int k = 19; k > 0; k -= 2) sum = sum * square + 1.0 / k;
  return n * 0.69314718055994531 + 2.0 * f * sum;
}

}  // namespace qat
