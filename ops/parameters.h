#pragma once

// What every backend does around its kernels: the parameters of a quantizer as tensors that a kernel
// reads or writes.

#include "qat/ops/api.h"
#include "qat/ops/checks.h"

namespace qat {

// Room for what a quantizer that finds scales finds: scale float32 and zero point int8, or the offset float32.
struct QAT_API FoundTensors {
  at::Tensor scale;
  at::Tensor zero_point;
};
QAT_API FoundTensors empty_parameters(const at::Tensor& x, const Quantizer& quantizer);
// The same of a quantizer that finds none.
QAT_API FoundTensors no_parameters(const at::Tensor& x, const Quantizer& quantizer);

// The outer scale of each block: one for all or, with a step of 1, one for each. None: 1.
struct QAT_API OuterScales {
  const float* at = nullptr;
  int64_t step = 0;

  QAT_HOST_DEVICE float operator[](int64_t block) const { return at ? at[block * step] : 1.0f; }
};
inline OuterScales outer_of(const OptionalTensor& scales) {
  if (!scales) return {};
  return {scales->const_data_ptr<float>(), scales->numel() == 1 ? 0 : 1};
}

// Parameters that are real numbers, contiguous, and what they are rounded under: one outer scale or
// one a block. Offsets have outer scales of their own. Outer scales that are not given are found.
struct QAT_API LearnedTensors {
  at::Tensor scale;
  OptionalTensor zero_point;
  OptionalTensor outer_scale;
  OptionalTensor outer_offset;
};
QAT_API LearnedTensors learned_parameters(const Quantizer& quantizer, const at::Tensor& scale,
                                          const OptionalTensor& zero_point,
                                          const OptionalTensor& outer_scale,
                                          const OptionalTensor& outer_offset = {});

// Parameters as kernels read them, contiguous: scale as it is stored, zero point or offset in float32
// where there is one.
struct QAT_API StoredTensors {
  at::Tensor scale;
  OptionalTensor zero_point;
  at::Tensor found_zero_point;  // of one that finds, in the dtype that it is returned in
  bool rounded = true;          // else the kernel rounds them as it reads them
};

// How a kernel takes learned parameters: as they are stored, or as they are where no outer scale is
// shared by them.
enum class Learned { rounded, as_given };

// Finds those of a quantizer that finds scales and is given none.
QAT_API StoredTensors stored_parameters(const at::Tensor& x, const Quantizer& quantizer,
                                        const Quantizer::Parameters& given,
                                        Learned learned = Learned::rounded);

// The outer scales that `scale`, one per block and not yet stored, needs: the least of which every
// code reaches the largest scale (with room for half as much again where (9a) may take it);
// [outer_rows, outer_cols], rounded to the quantizer's outer dtype, over E4M3 up to a power of two.
QAT_API at::Tensor outer_scales(const at::Tensor& scale, const Quantizer& quantizer);

// The one outer scale, or one entry per block from one per outer block.
QAT_API at::Tensor spread_outer(const at::Tensor& outer, const at::Tensor& scale,
                                const Quantizer& quantizer);

}  // namespace qat
