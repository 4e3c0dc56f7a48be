#pragma once

// What every backend does around its kernels: the parameters of a quantizer as tensors that a kernel
// reads or writes.

#include "qat/ops/api.h"
#include "qat/ops/checks.h"

namespace qat {

// Room for what a minmax quantizer finds: scale float32 and zero point int8, or the offset float32.
struct QAT_API FoundTensors {
  at::Tensor scale;
  at::Tensor zero_point;
};
QAT_API FoundTensors empty_parameters(const at::Tensor& x, const Quantizer& quantizer);
// The same of a quantizer that finds none.
QAT_API FoundTensors no_parameters(const at::Tensor& x, const Quantizer& quantizer);

// Parameters as kernels read them, contiguous: scale as it is stored, zero point or offset in float32
// where there is one.
struct QAT_API StoredTensors {
  at::Tensor scale;
  OptionalTensor zero_point;
  at::Tensor found_zero_point;  // of a minmax quantizer, in the dtype that it is returned in
};

// Finds those of a minmax quantizer that has none and rounds learned ones.
QAT_API StoredTensors stored_parameters(const at::Tensor& x, const Quantizer& quantizer,
                                        const OptionalTensor& scale,
                                        const OptionalTensor& zero_point,
                                        const OptionalTensor& outer_scale);

// The outer scales that `scale`, one per block and not yet stored, needs: the least of which every
// code reaches the largest scale; [outer_rows, outer_cols], rounded to the quantizer's outer dtype.
QAT_API at::Tensor outer_scales(const at::Tensor& scale, const Quantizer& quantizer);

// One entry per block from one per outer block.
QAT_API at::Tensor spread_outer(const at::Tensor& outer, const at::Tensor& scale,
                                const Quantizer& quantizer);

}  // namespace qat
