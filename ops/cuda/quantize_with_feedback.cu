#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/cuda/segments.cuh"
#include "qat/ops/quantize_with_feedback.h"

namespace qat {
namespace {

// One thread a row; `error` doubles as the memory of what was rounded before. Sums in the order of
// the CPU's kernel.
__global__ void quantize_with_feedback_kernel(const float* weight, const float* offset,
                                              const float* transfer, const float* scale,
                                              const int8_t* zero_point, int64_t rows, int64_t cols,
                                              bool scale_per_column, QuantRange range,
                                              int8_t* codes, float* error, float* residual) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < rows;
       row += stride) {
    for (int64_t col = 0; col < cols; ++col) {
      float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int64_t i = 0; i < col; ++i)
        sums[i % 4] += error[row * cols + i] * transfer[i * cols + col];
      const int64_t at = row * cols + col, place = scale_per_column ? at : row;
      const float zero = static_cast<float>(zero_point[place]);
      const float target = weight[at] + offset[at] + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
      const float level = affine::quantize(target, 1.0f / scale[place], zero, range);
      const float rounded = affine::dequantize(level, scale[place], zero);
      codes[at] = static_cast<int8_t>(level);
      error[at] = weight[at] - rounded;
      residual[at] = target - rounded;
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_with_feedback_cuda(
    const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& transfer,
    const at::Tensor& scale, const at::Tensor& zero_point, int64_t quant_min, int64_t quant_max) {
  check_quantize_with_feedback(weight, offset, transfer, scale, zero_point, quant_min, quant_max);
  const c10::cuda::CUDAGuard on_device(weight.device());
  const at::Tensor weights = weight.contiguous(), offsets = offset.contiguous(),
                   shares = transfer.contiguous(), scales = scale.contiguous(),
                   zeros = zero_point.contiguous();
  const at::Tensor codes = at::empty_like(weights, weights.options().dtype(at::kChar)),
                   error = at::empty_like(weights), residual = at::empty_like(weights);
  if (weights.numel() == 0) return {codes, error, residual};
  QAT_LAUNCH(quantize_with_feedback_kernel, blocks_for(weights.size(0), kThreads),
             weights.const_data_ptr<float>(), offsets.const_data_ptr<float>(),
             shares.const_data_ptr<float>(), scales.const_data_ptr<float>(),
             zeros.const_data_ptr<int8_t>(), weights.size(0), weights.size(1), scales.size(1) != 1,
             to_range(quant_min, quant_max), codes.mutable_data_ptr<int8_t>(),
             error.mutable_data_ptr<float>(), residual.mutable_data_ptr<float>());
  return {codes, error, residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { m.impl("quantize_with_feedback", &quantize_with_feedback_cuda); }

}  // namespace qat
