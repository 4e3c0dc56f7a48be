#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cuda/segments.cuh"

namespace qat {
namespace {

// The part of `x` under one scale, shared by one warp.
template <typename scalar_t>
struct WarpBlock {
  const scalar_t* x;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  const float* importance;  // of its columns; may be null
  int lane;

  __device__ void see_all(Range& seen) const {
    for (int64_t i = lane; i < rows * cols; i += kWarp)
      seen.see(static_cast<float>(x[i / cols * stride + i % cols]));
  }

  // In float32 within a row, in the order of LaneSum (ops/cpu/lane_sum.h), and float64 across rows.
  __device__ double squared_error(QParams params, QuantRange range) const {
    const float inverse = 1.0f / params.scale;
    double total = 0.0;
    for (int64_t row = 0; row < rows; ++row) {
      float sum = 0.0f;
      for (int64_t i = lane; i < cols; i += kWarp) {
        const float value = static_cast<float>(x[row * stride + i]);
        const float error =
            value - affine::fake_quantize(value, params.scale, inverse, params.zero_point, range);
        const float term = is_finite(value) ? error * error : 0.0f;
        sum += importance ? term * importance[i] : term;
      }
      total += static_cast<double>(warp_sum(sum));
    }
    return total;
  }
};

// One warp per block: its span, then, if asked, the search (10).
template <typename scalar_t>
__global__ void choose_qparams_kernel(BlockLayout layout, Grid grid, int bits,
                                      c10::ScalarType scale_dtype, bool searching,
                                      const scalar_t* x, const float* importance, float* scale,
                                      int8_t* zero_point) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;
  const QuantRange range = range_of(grid, bits);
  for (int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
       index < layout.grid_rows * layout.grid_cols; index += stride) {
    const int64_t first = index / layout.grid_cols * layout.block_rows;
    const int64_t col = index % layout.grid_cols;
    const int64_t left = layout.rows - first;
    const WarpBlock<scalar_t> block{x + layout.offset_of(first, col),
                                    left < layout.block_rows ? left : layout.block_rows,
                                    layout.segment_length(col),
                                    layout.cols,
                                    importance ? importance + col * layout.block_cols : nullptr,
                                    lane};
    Range seen;
    block.see_all(seen);
    seen = seen.over_warp();
    QParams best = seen.qparams(grid, bits, scale_dtype);
    if (searching && seen.low <= seen.high) {
      double least = block.squared_error(best, range);
      for (int step = 1; step < kSearchSteps && least > 0.0; ++step) {
        const float fraction = static_cast<float>(100 - step) / 100.0f;
        const QParams candidate =
            qparams_of(seen.low * fraction, seen.high * fraction, grid, bits, scale_dtype);
        const double error = block.squared_error(candidate, range);
        if (error < least) least = error, best = candidate;
      }
    }
    if (lane == 0) {
      scale[index] = best.scale;
      zero_point[index] = static_cast<int8_t>(best.zero_point);
    }
  }
}

std::tuple<at::Tensor, at::Tensor> choose_qparams_cuda(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    std::string_view method, at::ScalarType scale_dtype,
    const std::optional<at::Tensor>& importance) {
  const bool searching = check_choose_qparams(x, block, bits, method, scale_dtype, importance);
  const Grid grid = parse_grid("choose_qparams", grid_text);
  if (searching) check_integer_grid("choose_qparams", grid_text);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous();
  const auto weights = contiguous(importance);
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  if (scale.numel() == 0) return {scale, zero_point};
  QAT_DISPATCH_FLOAT(x.scalar_type(), "choose_qparams", [&] {
    QAT_LAUNCH(choose_qparams_kernel<scalar_t>, blocks_for(scale.numel(), kThreads / kWarp), layout,
               grid, static_cast<int>(bits), scale_dtype, searching,
               input.const_data_ptr<scalar_t>(), data_or_null<float>(weights),
               scale.mutable_data_ptr<float>(), zero_point.mutable_data_ptr<int8_t>());
  });
  return {scale, zero_point};
}

__global__ void round_qparams_kernel(int64_t numel, QuantRange range, c10::ScalarType scale_dtype,
                                     const float* scale, const float* zero_point, float* scale_out,
                                     int8_t* zero_out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel;
       i += stride) {
    scale_out[i] =
        stored_scale(scale[i], scale_dtype, zero_point && has_exact_offsets(range, scale_dtype));
    zero_out[i] =
        zero_point ? static_cast<int8_t>(stored_zero_point(zero_point[i], range)) : int8_t{0};
  }
}

std::tuple<at::Tensor, at::Tensor> round_qparams_cuda(const at::Tensor& scale,
                                                      const std::optional<at::Tensor>& zero_point,
                                                      int64_t quant_min, int64_t quant_max,
                                                      at::ScalarType scale_dtype) {
  check_round_qparams(scale, zero_point, quant_min, quant_max, scale_dtype);
  const c10::cuda::CUDAGuard on_device(scale.device());
  const at::Tensor scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor rounded_scale = at::empty_like(scales);
  const at::Tensor rounded_zero = at::empty_like(scales, scales.options().dtype(at::kChar));
  if (scales.numel() == 0) return {rounded_scale, rounded_zero};
  QAT_LAUNCH(round_qparams_kernel, blocks_for(scales.numel(), kThreads), scales.numel(),
             to_range(quant_min, quant_max), scale_dtype, scales.const_data_ptr<float>(),
             data_or_null<float>(zeros), rounded_scale.mutable_data_ptr<float>(),
             rounded_zero.mutable_data_ptr<int8_t>());
  return {rounded_scale, rounded_zero};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("choose_qparams", &choose_qparams_cuda);
  m.impl("round_qparams", &round_qparams_cuda);
}

}  // namespace qat
