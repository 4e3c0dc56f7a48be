#pragma once

// The checks that every backend and Meta pass through, and the shapes they agree on. Sizes stay
// symbolic, so that the same code serves torch.compile.

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>
#include <utility>

#include "qat/ops/blocks.h"
#include "qat/ops/qparams.h"

namespace qat {

// [rows, cols] of `x` seen as a matrix, and the number of blocks along each.
std::pair<c10::SymInt, c10::SymInt> matrix_sizes(const at::Tensor& x);
std::pair<c10::SymInt, c10::SymInt> grid_sizes(const at::Tensor& x, at::IntArrayRef block);

BlockLayout layout_of(const at::Tensor& x, at::IntArrayRef block);

// "narrow", "full", "signed", "asymmetric", "fp8_e4m3" or "fp8_e5m2".
Grid parse_grid(const char* op, std::string_view name);
const char* grid_name(Grid grid);

// Each raises TypeError or ValueError with one sentence that begins with `[op]`.
void check_input(const char* op, const at::Tensor& x);
void check_block(const char* op, at::IntArrayRef block);
void check_bits(const char* op, int64_t bits);
void check_range(const char* op, int64_t quant_min, int64_t quant_max);
// The ends of an integer grid, or those of an FP8 one.
void check_range_or_float8(const char* op, int64_t quant_min, int64_t quant_max);
void check_integer_grid(const char* op, std::string_view grid);
void check_scale_dtype(const char* op, at::ScalarType dtype);
// `scale` and, where given, `zero_point` have one entry per block of `x` and its device.
void check_qparams(const char* op, const at::Tensor& x, const at::Tensor& scale,
                   const std::optional<at::Tensor>& zero_point, at::ScalarType zero_point_dtype,
                   at::IntArrayRef block);
// What a forward returns: the dtype of `x`, or for float32 `x` a half one.
void check_result_dtype(const char* op, const at::Tensor& x, std::optional<at::ScalarType> dtype);
void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& x);
void check_gradient_inplace(const char* op, const at::Tensor& grad, const at::Tensor& x);

inline QuantRange to_range(int64_t quant_min, int64_t quant_max) {
  return {static_cast<float>(quant_min), static_cast<float>(quant_max)};
}

}  // namespace qat
