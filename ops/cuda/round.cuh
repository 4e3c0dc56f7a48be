#pragma once

// Rounding with parameters that are known: the forward of fixed and of learned quantizers.

#include "qat/ops/cuda/vectors.cuh"

namespace qat {

// Parameters as they are stored; no zero points means zeros.
struct StoredParams {
  const float* scale;
  const int8_t* zero_point;

  __device__ __forceinline__ QParams operator()(int64_t block) const {
    return {scale[block], zero_point ? static_cast<float>(zero_point[block]) : 0.0f};
  }
};

// Learned parameters, rounded as they will be stored (7), (8).
struct LearnedParams {
  const float* scale;
  const float* zero_point;
  QuantRange range;
  c10::ScalarType dtype;

  __device__ __forceinline__ QParams operator()(int64_t block) const {
    return {stored_scale(scale[block], dtype, zero_point && has_exact_offsets(range, dtype)),
            zero_point ? stored_zero_point(zero_point[block], range) : 0.0f};
  }
};

// (1) to (3) of every element.
template <typename scalar_t, typename out_t, typename Params>
void launch_round(const BlockLayout& layout, QuantRange range, const scalar_t* in, out_t* out,
                  const Params& params) {
  constexpr int kSize = kPerVector<scalar_t>;
  const auto vectors = vector_layout<scalar_t>(layout, in, out);
  if (vectors.usable) {
    launch_vectors(vectors, [=] __device__(int64_t vector, int64_t block) {
      const QParams found = params(block);
      const float inverse = 1.0f / found.scale;
      const auto x = reinterpret_cast<const Vector<scalar_t, kSize>*>(in)[vector];
      Vector<out_t, kSize> y;
      for (int j = 0; j < kSize; ++j)
        y.at[j] = static_cast<out_t>(affine::fake_quantize(static_cast<float>(x.at[j]), found.scale,
                                                           inverse, found.zero_point, range));
      reinterpret_cast<Vector<out_t, kSize>*>(out)[vector] = y;
    });
    return;
  }
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const QParams found = params(segment.block);
    const float inverse = 1.0f / found.scale;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<out_t>(affine::fake_quantize(static_cast<float>(in[i]), found.scale,
                                                        inverse, found.zero_point, range));
  });
}

}  // namespace qat
