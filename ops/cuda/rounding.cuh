#pragma once

// What happens to one element (affine.h), with the kind of levels and of zero points as constants.

#include "qat/ops/cuda/walk.cuh"
#include "qat/ops/kernels.h"

namespace qat {

struct BlockParams {
  float scale;
  float inverse;
  float shift;  // zero point or offset
};

__device__ __forceinline__ BlockParams inverted(QParams params) {
  return {params.scale, 1.0f / params.scale, params.zero_point};
}

// Parameters as they are stored; no zero points mean zeros.
struct StoredParams {
  const float* scale;
  const float* zero_point;

  explicit StoredParams(const StoredTensors& stored)
      : scale(stored.scale.const_data_ptr<float>()),
        zero_point(data_or_null<float>(stored.zero_point)) {}
  __device__ __forceinline__ BlockParams operator()(int64_t block) const {
    return inverted({scale[block], zero_point ? zero_point[block] : 0.0f});
  }
};

template <typename LevelsKind, Shift kShiftKind>
struct Rounding {
  using Kind = LevelsKind;
  static constexpr Shift kShift = kShiftKind;
  Kind levels;

  __device__ __forceinline__ static float before(float x, const BlockParams& p) {
    return kShift == Shift::offset ? x - p.shift : x;
  }
  __device__ __forceinline__ static float after(float y, const BlockParams& p) {
    return kShift == Shift::offset ? y + p.shift : y;
  }
  __device__ __forceinline__ static float zero(const BlockParams& p) {
    return kShift == Shift::level ? p.shift : 0.0f;
  }
  // (1) and (2)
  __device__ __forceinline__ float code(float x, const BlockParams& p) const {
    return affine::quantize(before(x, p), p.inverse, zero(p), levels);
  }
  // (1) to (3)
  __device__ __forceinline__ float value(float x, const BlockParams& p) const {
    return after(affine::fake_quantize(before(x, p), p.scale, p.inverse, zero(p), levels), p);
  }
  // (4)
  __device__ __forceinline__ float gradient(float grad, float x, const BlockParams& p) const {
    return affine::straight_through(grad, before(x, p), p.inverse, zero(p), levels);
  }
  // (5)
  __device__ __forceinline__ float scale_gradient(float grad, float x, const BlockParams& p) const {
    return affine::scale_gradient(grad, before(x, p), p.inverse, zero(p), levels);
  }
  // (6); an offset moves an element by one, as -1 for a scale.
  __device__ __forceinline__ float zero_gradient(float grad, float x, const BlockParams& p) const {
    return affine::zero_point_gradient(
        grad, before(x, p), kShift == Shift::offset ? -1.0f : p.scale, p.inverse, zero(p), levels);
  }
};

// Calls body with the Rounding of a quantizer, whose zero points are all 0 unless it `shifts`.
template <typename Body>
void with_rounding(const Quantizer& quantizer, bool shifts, const Body& body) {
  with_shift(quantizer, shifts, [&](auto shift, const auto& levels) {
    body(Rounding<std::decay_t<decltype(levels)>, shift()>{levels});
  });
}

// Calls body(rounding, code) with a value of the type that codes are kept in.
template <typename Body>
void with_codes(const Quantizer& quantizer, bool shifts, const Body& body) {
  with_rounding(quantizer, shifts, [&](const auto& rounding) {
    if constexpr (!std::is_same_v<typename std::decay_t<decltype(rounding)>::Kind, FloatLevels>) {
      body(rounding, int8_t());
    } else {
      quantizer.grid == Grid::e5m2 ? body(rounding, c10::Float8_e5m2())
                                   : body(rounding, c10::Float8_e4m3fn());
    }
  });
}

}  // namespace qat
