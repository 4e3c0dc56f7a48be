#include "qat/solvers/in_order.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace qat::solvers {
namespace {

template <typename scalar_t>
at::Tensor gathered(const at::Tensor& matrix, const at::Tensor& order) {
  const at::Tensor from = matrix.contiguous(), places = order.contiguous();
  const at::Tensor moved = at::empty({from.size(0), places.numel()}, from.options());
  const scalar_t* in = from.const_data_ptr<scalar_t>();
  const int64_t* place = places.const_data_ptr<int64_t>();
  scalar_t* out = moved.mutable_data_ptr<scalar_t>();
  const int64_t width = from.size(1), count = places.numel();
  at::parallel_for(0, from.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t col = 0; col < count; ++col)
        out[row * count + col] = in[row * width + place[col]];
  });
  return moved;
}

// Codes of integers and of floats alike.
at::Tensor as_bytes(const at::Tensor& codes) { return codes.view(at::kChar); }

}  // namespace

at::Tensor columns_in_order(const at::Tensor& matrix, const at::Tensor& order) {
  if (!matrix.is_cpu()) return matrix.index_select(1, order);
  if (matrix.element_size() > 1) return gathered<float>(matrix, order);
  return gathered<int8_t>(as_bytes(matrix), order).view(matrix.scalar_type());
}

at::Tensor rows_in_order(const at::Tensor& matrix, const at::Tensor& order) {
  if (matrix.size(0) != order.numel()) return matrix;
  if (matrix.element_size() > 1) return matrix.index_select(0, order);
  return as_bytes(matrix).index_select(0, order).view(matrix.scalar_type());
}

at::Tensor square_in_order(const at::Tensor& square, const at::Tensor& order) {
  return columns_in_order(square.index_select(0, order), order);
}

}  // namespace qat::solvers
