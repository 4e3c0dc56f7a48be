#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cuda/vectors.cuh"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/fake_quantize_dynamic.h"

namespace qat {
namespace {

struct Found {
  float* scale;
  int8_t* zero_point;

  __device__ __forceinline__ void store(int64_t block, QParams params) const {
    scale[block] = params.scale;
    zero_point[block] = static_cast<int8_t>(params.zero_point);
  }
};

// Groups within a warp: their elements are read once and stay in registers.
template <typename scalar_t, typename out_t>
void launch_groups(const VectorLayout& vectors, Grid grid, int bits, at::ScalarType scale_dtype,
                   const scalar_t* in, out_t* out, Found found) {
  constexpr int kSize = kPerVector<scalar_t>;
  using Packed = Vector<scalar_t, kSize>;
  const QuantRange range = range_of(grid, bits);
  const int lanes = static_cast<int>(vectors.per_block);
  launch_warps_of_vectors(vectors, [=] __device__(int64_t vector, int64_t block, bool active) {
    Packed x{};
    if (active) x = reinterpret_cast<const Packed*>(in)[vector];
    Range seen;
    for (int j = 0; j < kSize; ++j) seen.see(static_cast<float>(x.at[j]));
    const QParams params = seen.over_warp(lanes).qparams(grid, bits, scale_dtype);
    if (!active) return;
    if (vector % lanes == 0) found.store(block, params);
    const float inverse = 1.0f / params.scale;
    Vector<out_t, kSize> y;
    for (int j = 0; j < kSize; ++j)
      y.at[j] = static_cast<out_t>(affine::fake_quantize(static_cast<float>(x.at[j]), params.scale,
                                                         inverse, params.zero_point, range));
    reinterpret_cast<Vector<out_t, kSize>*>(out)[vector] = y;
  });
}

// Other blocks of one row: a warp finds the span of its segment, then rounds it while it is in
// cache; in vectors where the segments are made of them.
template <typename scalar_t, typename out_t>
void launch_rows(const BlockLayout& layout, bool in_vectors, Grid grid, int bits,
                 at::ScalarType scale_dtype, const scalar_t* in, out_t* out, Found found) {
  constexpr int kSize = kPerVector<scalar_t>;
  using Packed = Vector<scalar_t, kSize>;
  const QuantRange range = range_of(grid, bits);
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    Range seen;
    const int64_t first = segment.begin / kSize + segment.lane, end = segment.end / kSize;
    if (in_vectors) {
      for (int64_t vector = first; vector < end; vector += kWarp) {
        const Packed x = reinterpret_cast<const Packed*>(in)[vector];
        for (int j = 0; j < kSize; ++j) seen.see(static_cast<float>(x.at[j]));
      }
    } else {
      for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
        seen.see(static_cast<float>(in[i]));
    }
    const QParams params = seen.over_warp().qparams(grid, bits, scale_dtype);
    const float inverse = 1.0f / params.scale;
    if (segment.lane == 0) found.store(segment.block, params);
    const auto rounded = [&](scalar_t x) {
      return static_cast<out_t>(affine::fake_quantize(static_cast<float>(x), params.scale, inverse,
                                                      params.zero_point, range));
    };
    if (in_vectors) {
      for (int64_t vector = first; vector < end; vector += kWarp) {
        const Packed x = reinterpret_cast<const Packed*>(in)[vector];
        Vector<out_t, kSize> y;
        for (int j = 0; j < kSize; ++j) y.at[j] = rounded(x.at[j]);
        reinterpret_cast<Vector<out_t, kSize>*>(out)[vector] = y;
      }
    } else {
      for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
        out[i] = rounded(in[i]);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_cuda(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  check_fake_quantize_dynamic(x, block, bits, scale_dtype, dtype);
  const Grid grid = parse_grid("fake_quantize_dynamic", grid_text);
  const BlockLayout layout = layout_of(x, block);
  const c10::cuda::CUDAGuard on_device(x.device());
  if (layout.block_rows > 1 || is_float8(grid)) {
    auto [scale, zero_point] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    const QuantRange range = range_of(grid, static_cast<int>(bits));
    return {fake_quantize(x, scale, zero_point, block, static_cast<int64_t>(range.min),
                          static_cast<int64_t>(range.max), dtype),
            scale, zero_point};
  }
  const at::Tensor input = x.contiguous();
  const at::Tensor y =
      at::empty_like(input, input.options().dtype(dtype.value_or(x.scalar_type())));
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  const Found found{scale.mutable_data_ptr<float>(), zero_point.mutable_data_ptr<int8_t>()};
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    const auto vectors = vector_layout<decltype(in_type)>(layout, in, out);
    if (vectors.in_warp()) {
      launch_groups(vectors, grid, static_cast<int>(bits), scale_dtype, in, out, found);
    } else {
      launch_rows(layout, vectors.usable, grid, static_cast<int>(bits), scale_dtype, in, out,
                  found);
    }
  });
  return {y, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cuda); }

}  // namespace qat
