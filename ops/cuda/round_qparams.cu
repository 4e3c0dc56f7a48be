#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cuda/launch.cuh"
#include "qat/ops/parameters.h"

namespace qat {
namespace {

// The outer scale of each block, or the one of all.
struct OuterScales {
  const float* at = nullptr;
  int64_t step = 0;

  __device__ __forceinline__ float operator[](int64_t block) const {
    return at ? at[block * step] : 1.0f;
  }
};

__global__ void round_scales_kernel(int64_t count, ScaleCode code, bool exact_offsets,
                                    OuterScales outer, const float* from, float* to) {
  for (int64_t i = this_thread(); i < count; i += all_threads())
    to[i] = stored_scale(from[i], code, outer[i], exact_offsets);
}

__global__ void round_offsets_kernel(int64_t count, ScaleCode code, OuterScales outer,
                                     const float* from, float* to) {
  for (int64_t i = this_thread(); i < count; i += all_threads())
    to[i] = stored_offset(from[i], code, outer[i]);
}

__global__ void round_zero_points_kernel(int64_t count, Levels levels, const float* from,
                                         int8_t* to) {
  for (int64_t i = this_thread(); i < count; i += all_threads())
    to[i] = static_cast<int8_t>(stored_zero_point(from[i], levels));
}

std::tuple<at::Tensor, at::Tensor> round_qparams_cuda(const at::Tensor& scale,
                                                      std::string_view text,
                                                      const OptionalTensor& zero_point,
                                                      const OptionalTensor& outer_scale) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_round_qparams(scale, quantizer, zero_point, outer_scale);
  const c10::cuda::CUDAGuard on_device(scale.device());
  const at::Tensor scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const bool offset = quantizer.has_offset();
  const at::Tensor rounded = at::empty_like(scales);
  const at::Tensor rounded_zero =
      at::empty_like(scales, scales.options().dtype(offset ? at::kFloat : at::kChar));
  const int64_t count = scales.numel();
  if (!zeros) rounded_zero.zero_();
  if (count == 0) return {rounded, rounded_zero};
  at::Tensor outer, outer_zero;  // alive until the kernels are launched
  const auto spread = [&](const at::Tensor& found, at::Tensor& kept) -> OuterScales {
    kept = found.numel() == 1 ? found.contiguous() : spread_outer(found, scales, quantizer);
    return {kept.const_data_ptr<float>(), found.numel() == 1 ? 0 : 1};
  };
  OuterScales of_scale, of_zero;
  if (quantizer.has_outer_scale()) {
    of_scale = spread(outer_scale ? *outer_scale : outer_scales(scales, quantizer), outer);
    if (zeros) of_zero = spread(outer_scales(*zeros, quantizer), outer_zero);
  }
  const int blocks = blocks_for(count, kThreads);
  QAT_LAUNCH(round_scales_kernel, blocks, count, quantizer.scale_code,
             zeros && quantizer.exact_offsets(), of_scale, scales.const_data_ptr<float>(),
             rounded.mutable_data_ptr<float>());
  if (zeros && offset)
    QAT_LAUNCH(round_offsets_kernel, blocks, count, quantizer.scale_code, of_zero,
               zeros->const_data_ptr<float>(), rounded_zero.mutable_data_ptr<float>());
  else if (zeros)
    QAT_LAUNCH(round_zero_points_kernel, blocks, count, quantizer.levels(),
               zeros->const_data_ptr<float>(), rounded_zero.mutable_data_ptr<int8_t>());
  return {rounded, rounded_zero};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { m.impl("round_qparams", &round_qparams_cuda); }

}  // namespace qat
