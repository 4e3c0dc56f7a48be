#include "qat/ops/cuda/launch.cuh"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

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

void round_params(const LearnedTensors& learned, const Quantizer& quantizer,
                  const FoundTensors& to) {
  const auto& zeros = learned.zero_point;
  const int64_t count = learned.scale.numel();
  const int blocks = blocks_for(count, kThreads);
  QAT_LAUNCH(round_scales_kernel, blocks, count, quantizer.scale_code,
             zeros && quantizer.exact_offsets(), outer_of(learned.outer_scale),
             learned.scale.const_data_ptr<float>(), to.scale.mutable_data_ptr<float>());
  if (!zeros)
    to.zero_point.zero_();
  else if (quantizer.has_offset())
    QAT_LAUNCH(round_offsets_kernel, blocks, count, quantizer.scale_code,
               outer_of(learned.outer_offset), zeros->const_data_ptr<float>(),
               to.zero_point.mutable_data_ptr<float>());
  else
    QAT_LAUNCH(round_zero_points_kernel, blocks, count, quantizer.levels(),
               zeros->const_data_ptr<float>(), to.zero_point.mutable_data_ptr<int8_t>());
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_round_qparams(m, &round_params); }

}  // namespace qat
