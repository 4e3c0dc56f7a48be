#include "qat/ops/choose_qparams.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/lane_sum.h"
#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/vectorised.h"

namespace qat {
namespace {

// The part of `x` under one scale: `rows` segments of `cols` elements, `stride` apart.
template <typename scalar_t>
struct Block {
  const scalar_t* x;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  const float* importance;  // of its columns; may be null
};

template <typename scalar_t>
Block<scalar_t> block_at(const scalar_t* x, const float* importance, const BlockLayout& layout,
                         int64_t index) {
  const int64_t first = index / layout.grid_cols * layout.block_rows;
  const int64_t col = index % layout.grid_cols;
  return {x + layout.offset_of(first, col), std::min(layout.block_rows, layout.rows - first),
          layout.segment_length(col), layout.cols,
          importance ? importance + col * layout.block_cols : nullptr};
}

template <typename scalar_t>
QAT_HOST_DEVICE Span span_of_block(const Block<scalar_t>& block) {
  Span span = empty_span();
  for (int64_t row = 0; row < block.rows; ++row)
    span = join(span, span_of(block.x + row * block.stride, block.cols));
  return span;
}

// Weighted sum of squared rounding errors of the finite elements, in float32 within a segment and
// float64 across segments.
template <typename scalar_t>
QAT_HOST_DEVICE double squared_error(const Block<scalar_t>& block, QParams params,
                                     QuantRange range) {
  constexpr int64_t kPiece = 256;
  const float inverse = 1.0f / params.scale;
  double total = 0.0;
  for (int64_t row = 0; row < block.rows; ++row) {
    const scalar_t* x = block.x + row * block.stride;
    LaneSum sum;
    for (int64_t from = 0; from < block.cols; from += kPiece) {
      const int64_t count = std::min(kPiece, block.cols - from);
      alignas(64) float terms[kPiece];
      for (int64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(x[from + i]);
        const float error =
            value - affine::fake_quantize(value, params.scale, inverse, params.zero_point, range);
        terms[i] = is_finite(value) ? error * error : 0.0f;
      }
      if (block.importance)
        for (int64_t i = 0; i < count; ++i) terms[i] *= block.importance[from + i];
      sum.add(terms, count);
    }
    total += static_cast<double>(sum.total());
  }
  return total;
}

// (10) Shrinks the range step by step and keeps the parameters with the smallest error.
template <typename scalar_t>
QAT_HOST_DEVICE QParams search(const Block<scalar_t>& block, Span span, Grid grid, int bits,
                               c10::ScalarType scale_dtype) {
  const QuantRange range = range_of(grid, bits);
  QParams best = qparams_of(span, grid, bits, scale_dtype);
  double least = squared_error(block, best, range);
  for (int step = 1; step < kSearchSteps && least > 0.0; ++step) {
    const float fraction = search_fraction(step);
    const QParams candidate =
        qparams_of(span.low * fraction, span.high * fraction, grid, bits, scale_dtype);
    const double error = squared_error(block, candidate, range);
    if (error < least) least = error, best = candidate;
  }
  return best;
}

std::tuple<at::Tensor, at::Tensor> choose_qparams_cpu(const at::Tensor& x, at::IntArrayRef block,
                                                      int64_t bits, std::string_view grid_text,
                                                      std::string_view method,
                                                      at::ScalarType scale_dtype,
                                                      const std::optional<at::Tensor>& importance) {
  const bool searching = check_choose_qparams(x, block, bits, method, scale_dtype, importance);
  const Grid grid = parse_grid("choose_qparams", grid_text);
  if (searching) check_integer_grid("choose_qparams", grid_text);
  const int width = static_cast<int>(bits);
  const at::Tensor input = x.contiguous();
  const auto weights = contiguous(importance);
  const float* columns = data_or_null<float>(weights);
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  const int64_t grain =
      std::max<int64_t>(1, 4096 / std::max<int64_t>(1, layout.block_rows * layout.block_cols));
  QAT_DISPATCH_FLOAT(x.scalar_type(), "choose_qparams", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    float* scale_at = scale.mutable_data_ptr<float>();
    int8_t* zero_at = zero_point.mutable_data_ptr<int8_t>();
    at::parallel_for(0, scale.numel(), grain, [&](int64_t begin, int64_t end) {
      vectorised([&]() QAT_BODY {
        for (int64_t index = begin; index < end; ++index) {
          const Block<scalar_t> part = block_at(in, columns, layout, index);
          const Span span = span_of_block(part);
          const QParams found = searching && span.low <= span.high
                                    ? search(part, span, grid, width, scale_dtype)
                                    : qparams_of(span, grid, width, scale_dtype);
          scale_at[index] = found.scale;
          zero_at[index] = static_cast<int8_t>(found.zero_point);
        }
      });
    });
  });
  return {scale, zero_point};
}

std::tuple<at::Tensor, at::Tensor> round_qparams_cpu(const at::Tensor& scale,
                                                     const std::optional<at::Tensor>& zero_point,
                                                     int64_t quant_min, int64_t quant_max,
                                                     at::ScalarType scale_dtype) {
  check_round_qparams(scale, zero_point, quant_min, quant_max, scale_dtype);
  const at::Tensor scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor rounded_scale = at::empty_like(scales);
  const at::Tensor rounded_zero = at::empty_like(scales, scales.options().dtype(at::kChar));
  const QuantRange range = to_range(quant_min, quant_max);
  const float* scale_in = scales.const_data_ptr<float>();
  const float* zero_in = data_or_null<float>(zeros);
  float* scale_out = rounded_scale.mutable_data_ptr<float>();
  int8_t* zero_out = rounded_zero.mutable_data_ptr<int8_t>();
  const bool exact_offsets = zero_in && has_exact_offsets(range, scale_dtype);
  for (int64_t i = 0; i < scales.numel(); ++i) {
    scale_out[i] = stored_scale(scale_in[i], scale_dtype, exact_offsets);
    zero_out[i] = zero_in ? static_cast<int8_t>(stored_zero_point(zero_in[i], range)) : int8_t{0};
  }
  return {rounded_scale, rounded_zero};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("choose_qparams", &choose_qparams_cpu);
  m.impl("round_qparams", &round_qparams_cpu);
}

}  // namespace qat
