#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace qat {

// Fake quantization whose scale, and on an asymmetric grid zero point, are trained: LSQ
// (arXiv 1902.08153) and LSQ+ (arXiv 2004.09576). numerics.md (1) to (8).
//
//   x               float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   scale           float32 [grid_rows, grid_cols], one per block; used as round_qparams rounds it
//   zero_point      float32, shaped like `scale`, or none; rounded to the nearest level
//   gradient_scale  multiplies the gradients of scale and zero point; LSQ: 1 / sqrt(block size *
//   quant_max)
//   dtype           of the result, as in fake_quantize
//
// Differentiable in `x` (4), `scale` (5) and `zero_point` (6), where both roundings count as the
// identity. The mask is that of the rounded level, as everywhere here; the LSQ paper masks the
// unrounded one. Sums run in a fixed order: the same bits every run, for any number of threads.
at::Tensor fake_quantize_learned(const at::Tensor& x, const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                                 int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype,
                                 double gradient_scale,
                                 std::optional<at::ScalarType> dtype = std::nullopt);

// Gradients of x, scale and zero point; the last is empty when there is none.
std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale);

// The same, the gradient of x written over `grad`; returns the other two.
std::tuple<at::Tensor, at::Tensor> fake_quantize_learned_backward_inplace(
    at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale);

// Called by every backend before it computes.
void check_fake_quantize_learned(const at::Tensor& x, const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                                 int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype,
                                 std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace qat
