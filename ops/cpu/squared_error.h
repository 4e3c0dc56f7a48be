#pragma once

#include <algorithm>

#include "qat/ops/cpu/lane_sum.h"
#include "qat/ops/cpu/vectorised.h"
#include "qat/ops/qparams.h"

namespace qat {

// Weighted sum of squared rounding errors of the finite elements of a segment.
template <typename scalar_t, typename Length, typename Kind>
QAT_HOST_DEVICE float squared_error(const scalar_t* x, Length length, const float* importance,
                                    QParams params, bool offset, const Kind& levels) {
  constexpr int64_t kPiece = 256;
  const float inverse = 1.0f / params.scale;
  const float z = offset ? 0.0f : params.zero_point, o = offset ? params.zero_point : 0.0f;
  LaneSum<float> sum;
  for (int64_t from = 0; from < length; from += kPiece) {
    const int64_t count = std::min<int64_t>(kPiece, length - from);
    alignas(64) float terms[kPiece];
    for (int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(x[from + i]) - o;
      const float error = value - affine::fake_quantize(value, params.scale, inverse, z, levels);
      terms[i] = is_finite(value) ? error * error : 0.0f;
    }
    if (importance)
      for (int64_t i = 0; i < count; ++i) terms[i] *= importance[from + i];
    sum.add(terms, count);
  }
  return sum.total();
}

}  // namespace qat
