#include "qat/ops/cpu/choose_qparams.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "qat/ops/candidates.h"
#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/squared_error.h"
#include "qat/ops/cpu/sum_rows.h"
#include "qat/ops/cpu/tile_params.h"

namespace qat {
namespace {

// The smallest and largest finite element of each segment, [rows, grid_cols].
struct Spans {
  at::Tensor low, high;

  // Those of a block, whatever its height. A block without finite elements counts as one of zeros.
  Span of_block(const BlockLayout& layout, int64_t block) const {
    const int64_t first = block / layout.grid_cols * layout.block_rows;
    const int64_t last = std::min(first + layout.block_rows, layout.rows);
    const float *lows = low.const_data_ptr<float>(), *highs = high.const_data_ptr<float>();
    Span span = empty_span();
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = row * layout.grid_cols + block % layout.grid_cols;
      span = join(span, {lows[at], highs[at]});
    }
    return span.low > span.high ? Span{0.0f, 0.0f} : span;
  }
};

Spans spans_of(const Blocks& blocks) {
  const auto& [x, quantizer, layout] = blocks;
  const auto options = x.options().dtype(at::kFloat);
  const Spans spans{at::empty({layout.rows, layout.grid_cols}, options),
                    at::empty({layout.rows, layout.grid_cols}, options)};
  float *low = spans.low.mutable_data_ptr<float>(), *high = spans.high.mutable_data_ptr<float>();
  QAT_DISPATCH_FLOAT(x.scalar_type(), "choose_qparams", [&, grid = quantizer.grid] {
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    for_each_tile(blocks.layout, [&](const Tile& tile) QAT_BODY {
      const TileSpan found = span_of(grid, in, tile);
      for (int k = 0; k < tile.count; ++k) {
        low[tile.first_segment + k] = found.low[k];
        high[tile.first_segment + k] = found.high[k];
      }
    });
  });
  return spans;
}

// What a choice of parameters costs a block: segments in float32, added over its rows in float64.
template <typename scalar_t, typename Kind>
struct BlockError {
  const scalar_t* x;
  const float* importance;
  BlockLayout layout;
  Kind levels;
  bool offset;

  QAT_HOST_DEVICE double of_segment(int64_t row, int64_t col, QParams params) const {
    return squared_error(x + layout.offset_of(row, col), layout.segment_length(col),
                         importance ? importance + col * layout.block_cols : nullptr, params,
                         offset, levels);
  }
  // Rows side by side, where blocks are not.
  double of_rows(int64_t first, int64_t last, int64_t col, QParams params) const {
    std::vector<double> errors(static_cast<size_t>(last - first));
    const int64_t grain = std::max<int64_t>(1, 32768 / layout.segment_length(col));
    at::parallel_for(first, last, grain, [&](int64_t begin, int64_t end) {
      vectorised([&]() QAT_BODY {
        for (int64_t row = begin; row < end; ++row)
          errors[static_cast<size_t>(row - first)] = of_segment(row, col, params);
      });
    });
    return sum_column(errors.data(), 1, 0, last - first);
  }
  QAT_HOST_DEVICE double operator()(int64_t block, QParams params) const {
    const int64_t first = block / layout.grid_cols * layout.block_rows;
    const int64_t last = std::min(first + layout.block_rows, layout.rows);
    const int64_t col = block % layout.grid_cols;
    return last - first == 1 ? of_segment(first, col, params) : of_rows(first, last, col, params);
  }
};

// Keeps the candidate with the smallest error.
template <typename Error>
QAT_HOST_DEVICE QParams best_of(const Candidates& candidates, Span span, Outer outer,
                                const Error& error) {
  QParams best = candidates(span.low, span.high, outer, 0), last = best;
  const int count = candidates.count();
  if (count == 1 || (span.low == 0.0f && span.high == 0.0f)) return best;
  double least = error(best);
  for (int step = 1; step < count && least > 0.0; ++step) {
    const QParams candidate = candidates(span.low, span.high, outer, step);
    // At the ends of a code, and of a dtype with few bits, many are the same.
    if (candidate.scale == last.scale && candidate.zero_point == last.zero_point) continue;
    last = candidate;
    const double cost = error(candidate);
    if (cost < least) least = cost, best = candidate;
  }
  return best;
}

// The parameters of all blocks from the ranges of their segments.
template <typename scalar_t>
void choose(const Blocks& blocks, const Choosing& how, const TileSource& found) {
  const auto& [x, quantizer, layout] = blocks;
  const Spans spans = spans_of(blocks);
  const Candidates candidates{quantizer.grid, quantizer.levels(), quantizer.scale_code,
                              how.searching};
  const bool unstored = quantizer.has_outer_scale() && !how.outer_scale;
  const int64_t cost =
      candidates.count() > 1 ? layout.block_rows * layout.block_cols : layout.block_rows;
  const int64_t grain = std::max<int64_t>(1, 4096 / cost);
  const OuterScales outer = outer_of(how.outer_scale), outer_offset = outer_of(how.outer_offset);
  with_kind(quantizer.levels(), [&](const auto& kind) {
    const BlockError<scalar_t, std::decay_t<decltype(kind)>> error{
        blocks.x.const_data_ptr<scalar_t>(), data_or_null<float>(how.importance), blocks.layout,
        kind, blocks.quantizer.has_offset()};
    const auto one = [&](int64_t block) QAT_BODY {
      const Span span = spans.of_block(blocks.layout, block);
      if (unstored)
        return unstored_qparams(span.low, span.high, candidates.grid, candidates.levels);
      return best_of(candidates, span, {outer[block], outer_offset[block]},
                     [&](QParams params) QAT_BODY { return error(block, params); });
    };
    at::parallel_for(0, blocks.layout.blocks(), grain, [&](int64_t begin, int64_t end) {
      vectorised([&]() QAT_BODY {
        for (int64_t block = begin; block < end; ++block) found.write(block, one(block));
      });
    });
  });
}

void round_params(const LearnedTensors& learned, const Quantizer& quantizer,
                  const FoundTensors& to) {
  const TileSource source = TileSource::rounded(quantizer, learned, to);
  const int64_t count = learned.scale.numel();
  at::parallel_for(0, (count + kTile - 1) / kTile, 512, [&](int64_t begin, int64_t end) {
    vectorised([&]() QAT_BODY {
      for (int64_t first = begin * kTile; first < std::min(end * kTile, count); first += kTile) {
        TileParams params;
        source.read(first, static_cast<int>(std::min<int64_t>(kTile, count - first)), params);
      }
    });
  });
}

}  // namespace

void choose_params(const Blocks& blocks, const Choosing& how, const FoundTensors& found) {
  const Quantizer& quantizer = blocks.quantizer;
  const bool by_tile = blocks.layout.block_rows == 1 && !how.searching && !how.outer_offset &&
                       !(how.outer_scale && quantizer.shifts());
  const TileSource source = by_tile && how.outer_scale
                                ? TileSource::found(quantizer, outer_of(how.outer_scale), found)
                                : TileSource::found(quantizer, found);
  QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "choose_qparams", [&] {
    if (!by_tile) return choose<scalar_t>(blocks, how, source);
    const scalar_t* in = blocks.x.const_data_ptr<scalar_t>();
    for_each_tile(blocks.layout, [&](const Tile& tile) QAT_BODY {
      TileParams params;
      source(tile, in, params);
    });
  });
}

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  implement_choose_qparams(m, &choose_params);
  implement_round_qparams(m, &round_params);
}

}  // namespace qat
