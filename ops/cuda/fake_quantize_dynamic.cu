#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/choose_qparams.h"
#include "ops/cuda/segments.cuh"
#include "ops/fake_quantize.h"
#include "ops/fake_quantize_dynamic.h"

namespace qat {
namespace {

// Blocks of one row: a warp finds the span of its segment, then rounds it while it is in cache.
template <typename scalar_t>
void launch_rows(const BlockLayout& layout, Grid grid, int bits, at::ScalarType scale_dtype,
                 const scalar_t* in, scalar_t* out, float* scale, int8_t* zero_point) {
  const QuantRange range = range_of(grid, bits);
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    float low = FLT_MAX, high = -FLT_MAX;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp) {
      const float value = static_cast<float>(in[i]);
      if (!is_finite(value)) continue;
      low = fminf(low, value);
      high = fmaxf(high, value);
    }
    const QParams found = qparams_of_span(warp_min(low), warp_max(high), grid, bits, scale_dtype);
    const float inverse = 1.0f / found.scale;
    if (segment.lane == 0) {
      scale[segment.block] = found.scale;
      zero_point[segment.block] = static_cast<int8_t>(found.zero_point);
    }
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp)
      out[i] = static_cast<scalar_t>(affine::fake_quantize(static_cast<float>(in[i]), found.scale,
                                                           inverse, found.zero_point, range));
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_cuda(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    at::ScalarType scale_dtype) {
  check_fake_quantize_dynamic(x, block, bits, scale_dtype);
  const Grid grid = parse_grid("fake_quantize_dynamic", grid_text);
  const BlockLayout layout = layout_of(x, block);
  const c10::cuda::CUDAGuard on_device(x.device());
  if (layout.block_rows > 1) {
    auto [scale, zero_point] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    const QuantRange range = range_of(grid, static_cast<int>(bits));
    return {fake_quantize(x, scale, zero_point, block, static_cast<int64_t>(range.min),
                          static_cast<int64_t>(range.max)),
            scale, zero_point};
  }
  const at::Tensor input = x.contiguous();
  const at::Tensor y = at::empty_like(input);
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_dynamic", [&] {
    launch_rows(layout, grid, static_cast<int>(bits), scale_dtype, input.const_data_ptr<scalar_t>(),
                y.mutable_data_ptr<scalar_t>(), scale.mutable_data_ptr<float>(),
                zero_point.mutable_data_ptr<int8_t>());
  });
  return {y, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cuda); }

}  // namespace qat
