#pragma once

// The checks that every backend and Meta pass through, and the shapes they agree on. Sizes stay
// symbolic, so that the same code serves torch.compile.

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <utility>

#include "qat/ops/api.h"
#include "qat/ops/blocks.h"
#include "qat/ops/quantizer.h"

namespace qat {

using OptionalTensor = std::optional<at::Tensor>;

// [rows, cols] of `x` seen as a matrix, and the number of blocks along each.
QAT_API std::pair<c10::SymInt, c10::SymInt> matrix_sizes(const at::Tensor& x);
QAT_API std::pair<c10::SymInt, c10::SymInt> grid_sizes(const at::Tensor& x, at::IntArrayRef block);

QAT_API BlockLayout layout_of(const at::Tensor& x, at::IntArrayRef block);

// Each raises TypeError or ValueError with one sentence that begins with `[op]`.
QAT_API void check_input(const char* op, const at::Tensor& x);
QAT_API void check_block(const char* op, at::IntArrayRef block);
QAT_API void check_bits(const char* op, int64_t bits);
// What a quantizer reads beside `x`: one entry per block, on the device of x. `scale` float32, which
// fixed and learned quantizers must have; `zero_point` float32 where it is learned or an offset, else
// int8; `outer_scale` float32, one per outer block.
QAT_API void check_parameters(const char* op, const Quantizer& quantizer, const at::Tensor& x,
                              const Quantizer::Parameters& given);
// That what is given lies where `x` does: kernels read it there.
QAT_API void check_device(const char* op, const char* name, const at::Tensor& tensor,
                          const at::Tensor& x);
QAT_API void check_float(const char* op, const char* name, at::ScalarType dtype);
// What a forward returns: the dtype of `x`, or for float32 `x` a half one.
QAT_API void check_result_dtype(const char* op, const at::Tensor& x,
                                std::optional<at::ScalarType> dtype);
// `inplace`: the gradient of x will be written over it.
QAT_API void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& x,
                            bool inplace);

}  // namespace qat
