#pragma once

// The exponential that kernels share: by additions, multiplications and bits alone, so that it gives
// the same result with every set of instructions and on a GPU, and loops over it are vectorised.

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

}  // namespace qat
