#pragma once

// What the CPU kernels share: walking the segments of a layout (blocks.h) over threads, the range
// of a segment, and dispatch on dtype.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "ops/arguments.h"
#include "ops/blocks.h"
#include "ops/cpu/vectorised.h"
#include "ops/qparams.h"

namespace qat {

struct Span {
  float low;
  float high;
};

QAT_HOST_DEVICE Span empty_span() { return {FLT_MAX, -FLT_MAX}; }

QAT_HOST_DEVICE Span join(Span a, Span b) {
  return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

// The span of the finite elements of a segment. Independent lanes, so that it vectorises; the
// result is exact in any order.
template <typename scalar_t>
QAT_HOST_DEVICE Span span_of(const scalar_t* x, int64_t length) {
  constexpr int kLanes = 16;
  float low[kLanes], high[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) low[lane] = FLT_MAX, high[lane] = -FLT_MAX;
  const auto visit = [&](int lane, float value) QAT_BODY {
    const bool finite = is_finite(value);
    const float below = finite ? value : FLT_MAX;
    const float above = finite ? value : -FLT_MAX;
    low[lane] = below < low[lane] ? below : low[lane];
    high[lane] = above > high[lane] ? above : high[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) visit(lane, static_cast<float>(x[i + lane]));
  for (; i < length; ++i) visit(0, static_cast<float>(x[i]));
  Span span{low[0], high[0]};
  for (int lane = 1; lane < kLanes; ++lane) span = join(span, {low[lane], high[lane]});
  return span;
}

// Parameters of a block whose elements were all visited. A block without finite elements counts as
// one of zeros.
QAT_HOST_DEVICE QParams qparams_of(Span span, Grid grid, int bits, c10::ScalarType dtype) {
  return span.low > span.high ? qparams_of(0.0f, 0.0f, grid, bits, dtype)
                              : qparams_of(span.low, span.high, grid, bits, dtype);
}

// Calls body(first_row, last_row) on chunks of rows, each large enough to be worth a thread.
template <typename Body>
void parallel_rows(const BlockLayout& layout, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, layout.cols));
  at::parallel_for(0, layout.rows, grain, [&](int64_t begin, int64_t end) {
    vectorised([&]() QAT_BODY { body(begin, end); });
  });
}

// Calls visit(offset, length, block) for every segment of rows [begin, end).
template <typename Visit>
QAT_HOST_DEVICE void for_each_segment(const BlockLayout& layout, int64_t begin, int64_t end,
                                      const Visit& visit) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t col = 0; col < layout.grid_cols; ++col)
      visit(layout.offset_of(row, col), layout.segment_length(col), layout.block_of(row, col));
}

}  // namespace qat
