#pragma once

#include <ATen/core/Tensor.h>

namespace qat::solvers {

// Parts of float32 matrices and of codes, which are bytes, in an `order`, int64. Columns of what lies
// on a CPU are copied in several threads, where torch's index_select takes them one element at a time.
at::Tensor columns_in_order(const at::Tensor& matrix, const at::Tensor& order);
// What rows share, and so has fewer entries than `order`, stays as it is.
at::Tensor rows_in_order(const at::Tensor& matrix, const at::Tensor& order);
// Rows and columns of a square float32 matrix.
at::Tensor square_in_order(const at::Tensor& square, const at::Tensor& order);

}  // namespace qat::solvers
