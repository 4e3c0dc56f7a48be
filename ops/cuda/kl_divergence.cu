#include "qat/ops/arguments.h"
#include "qat/ops/cuda/launch.cuh"
#include "qat/ops/divergence.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

constexpr int kWarps = kThreads / kWarp;
static_assert(kWarps == kDivergenceParts, "each warp adds up a part");

template <typename student_t, typename teacher_t>
struct Logits {
  const student_t* student;
  const teacher_t* teacher;
  const bool* counted;
  const float* share;
  float inverse_temperature;
  int64_t tokens;
  int64_t choices;
  float* kl;
  student_t* gradient;
};

// In every thread of the block.
template <typename student_t, typename teacher_t>
__device__ DivergenceTops tops_of(const student_t* student, const teacher_t* teacher,
                                  int64_t choices) {
  DivergenceTops tops{-INFINITY, -INFINITY};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < choices; i += kThreads) {
    tops.student = fmaxf(tops.student, static_cast<float>(student[i]));
    tops.teacher = fmaxf(tops.teacher, static_cast<float>(teacher[i]));
  }
  __shared__ DivergenceTops of_warps[kWarps];
  tops = {warp_max(tops.student, kWarp), warp_max(tops.teacher, kWarp)};
  if (lane_of_warp() == 0) of_warps[threadIdx.x / kWarp] = tops;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    tops.student = fmaxf(tops.student, of_warps[warp].student);
    tops.teacher = fmaxf(tops.teacher, of_warps[warp].teacher);
  }
  return tops;
}

// A block goes through a token: its largest logits, its sums, its gradient. A warp takes whole
// pieces, its lanes the elements of LaneSum's.
template <typename student_t, typename teacher_t>
__global__ void kl_divergence_kernel(Logits<student_t, teacher_t> p) {
  __shared__ DivergenceTotals parts[kDivergenceParts];
  const int lane = lane_of_warp(), warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    student_t* gradient = p.gradient ? p.gradient + token * p.choices : nullptr;
    if (p.counted && !p.counted[token]) {
      if (threadIdx.x == 0) p.kl[token] = 0.0f;
      if (gradient)
        for (int64_t i = threadIdx.x; i < p.choices; i += kThreads)
          gradient[i] = static_cast<student_t>(0.0f);
      continue;
    }
    const student_t* student = p.student + token * p.choices;
    const teacher_t* teacher = p.teacher + token * p.choices;
    const DivergenceTops tops = tops_of(student, teacher, p.choices);
    const auto term = [&](int64_t i) {
      return divergence_term(static_cast<float>(student[i]), static_cast<float>(teacher[i]), tops,
                             p.inverse_temperature);
    };
    DivergenceTotals part;
    for (int64_t from = warp * int64_t{kDivergencePiece}; from < p.choices;
         from += int64_t{kWarps} * kDivergencePiece) {
      float ours = 0.0f, theirs = 0.0f, difference = 0.0f;
#pragma unroll 4
      for (int k = 0; k < kDivergencePiece; k += kWarp) {
        const int64_t i = from + k + lane;
        if (i >= p.choices) break;
        const DivergenceTerm found = term(i);
        ours += found.student;
        theirs += found.teacher;
        difference += found.difference;
      }
      part.add({static_cast<double>(warp_sum(ours)), static_cast<double>(warp_sum(theirs)),
                static_cast<double>(warp_sum(difference))});
    }
    if (lane == 0) parts[warp] = part;
    __syncthreads();
    DivergenceSums sums;
    for (int k = 0; k < kDivergenceParts; ++k) sums.parts[k] = parts[k];
    if (threadIdx.x == 0) p.kl[token] = sums.divergence();
    if (gradient) {
      const DivergenceFactors by = sums.factors(*p.share * p.inverse_temperature);
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < p.choices; i += kThreads) {
        const DivergenceTerm found = term(i);
        gradient[i] =
            static_cast<student_t>(found.student * by.student - found.teacher * by.teacher);
      }
    }
    __syncthreads();  // all have read what the next token writes
  }
}

void find(const Divergence& of) {
  const int64_t tokens = of.kl.numel();
  QAT_DISPATCH_FLOAT(of.student.scalar_type(), "kl_divergence", [&] {
    using student_t = scalar_t;
    QAT_DISPATCH_FLOAT(of.teacher.scalar_type(), "kl_divergence", [&] {
      const auto kernel = kl_divergence_kernel<student_t, scalar_t>;
      const Logits<student_t, scalar_t> problem{
          of.student.const_data_ptr<student_t>(),
          of.teacher.const_data_ptr<scalar_t>(),
          data_or_null<bool>(of.counted),
          data_or_null<float>(of.share),
          of.inverse_temperature,
          tokens,
          of.student.size(-1),
          of.kl.mutable_data_ptr<float>(),
          of.share ? of.gradient.mutable_data_ptr<student_t>() : nullptr};
      QAT_LAUNCH(kernel, static_cast<int>(std::min(tokens, kMostBlocks)), problem);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_kl_divergence(m, &find); }

}  // namespace qat
