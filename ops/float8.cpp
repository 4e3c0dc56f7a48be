#include "qat/ops/float8.h"

#include <ATen/ATen.h>

#include "qat/ops/checks.h"

namespace qat {
namespace {

// One entry per element of the matrix that x is seen as, or per row, or one for all.
at::Tensor expanded(const at::Tensor& parameters, const BlockLayout& layout) {
  at::Tensor rows =
      layout.grid_rows == layout.rows || layout.grid_rows == 1
          ? parameters
          : parameters.repeat_interleave(layout.block_rows, 0).slice(0, 0, layout.rows);
  if (layout.grid_cols == 1) return rows;
  return rows.repeat_interleave(layout.block_cols, 1).slice(1, 0, layout.cols);
}

at::Tensor as_matrix(const at::Tensor& x, const BlockLayout& layout) {
  return x.reshape({layout.rows, layout.cols});
}

// x / s as on every grid: times the reciprocal, in float32.
at::Tensor scaled(const at::Tensor& x, const at::Tensor& scale, const BlockLayout& layout) {
  return as_matrix(x, layout).to(at::kFloat) * expanded(scale.reciprocal(), layout);
}

}  // namespace

at::ScalarType float8_dtype(QuantRange range) {
  return range.max == 448.0f ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
}

at::Tensor float8_codes(const at::Tensor& x, const at::Tensor& scale, at::IntArrayRef block,
                        QuantRange range) {
  return scaled(x, scale, layout_of(x, block))
      .clamp_(range.min, range.max)
      .to(float8_dtype(range))
      .view(x.sizes());
}

at::Tensor float8_dequantize(const at::Tensor& codes, const at::Tensor& scale,
                             at::IntArrayRef block, at::ScalarType dtype) {
  const BlockLayout layout = layout_of(codes, block);
  return (as_matrix(codes, layout).to(at::kFloat) * expanded(scale, layout))
      .to(dtype)
      .view(codes.sizes());
}

at::Tensor float8_fake_quantize(const at::Tensor& x, const at::Tensor& scale, at::IntArrayRef block,
                                QuantRange range, at::ScalarType dtype) {
  const at::Tensor y = float8_dequantize(float8_codes(x, scale, block, range), scale, block, dtype);
  return y.masked_fill_(at::isfinite(x).logical_not_(), NAN);
}

void float8_straight_through_inplace(const at::Tensor& grad, const at::Tensor& x,
                                     const at::Tensor& scale, at::IntArrayRef block,
                                     QuantRange range) {
  // Half a step beyond the largest number still rounds to it: a step there is 2^-3 or 2^-2 of the
  // power of two below it.
  const float half_step = range.max == 448.0f ? 16.0f : 4096.0f;
  const at::Tensor outside =
      (scaled(x, scale, layout_of(x, block)).abs_() <= range.max + half_step).logical_not_();
  grad.masked_fill_(outside.view(x.sizes()), 0);
}

}  // namespace qat
