#pragma once

// What the CPU kernels share: walking the blocks of a layout (blocks.h) over threads, some
// neighbouring segments at a time.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "qat/ops/blocks.h"
#include "qat/ops/cpu/stream.h"
#include "qat/ops/cpu/vectorised.h"

namespace qat {

// Segments of a row that are treated together, at most: the arithmetic on their scales then fills
// two vectors, whose latencies overlap.
constexpr int kLanes = 16;
constexpr int kTile = 2 * kLanes;

// Calls body(k) for `count` segments of a tile and for what fills their last vector.
template <typename Body>
QAT_HOST_DEVICE void for_each_lane(int count, const Body& body) {
  for (int first = 0; first < count; first += kLanes)
    for (int k = first; k < first + kLanes; ++k) body(k);
}
// Those that fill the last vector alone.
template <typename Body>
QAT_HOST_DEVICE void for_each_spare_lane(int count, const Body& body) {
  for (int k = count; k % kLanes != 0; ++k) body(k);
}

// Of groups of up to 128 so many that they stay in the nearest cache between two visits.
inline int segments_per_tile(const BlockLayout& layout) {
  return layout.block_cols * kTile <= kStage ? kTile : kTile / 2;
}

// `count` neighbouring segments. Segment k begins `step` elements after segment k - 1, all are
// `step` long but perhaps the last, and they lie in blocks first_block, first_block + 1, ...
struct Tile {
  int64_t begin;
  int64_t step;
  int64_t last_length;
  int64_t first_block;
  int64_t first_segment;  // counted along the rows: row * grid_cols + grid_col
  int count;

  QAT_HOST_DEVICE int64_t at(int k) const { return begin + k * step; }
  QAT_HOST_DEVICE int64_t length(int k) const { return k + 1 == count ? last_length : step; }
  QAT_HOST_DEVICE int64_t length() const { return (count - 1) * step + last_length; }
};

QAT_HOST_DEVICE Tile tile_of(const BlockLayout& layout, int64_t row, int64_t first_col, int most) {
  const int64_t left = layout.grid_cols - first_col;
  const int count = static_cast<int>(left < most ? left : most);
  return {layout.offset_of(row, first_col),
          layout.block_cols,
          layout.segment_length(first_col + count - 1),
          layout.block_of(row, first_col),
          row * layout.grid_cols + first_col,
          count};
}

// Calls visit(tile) for every tile of the layout, over threads, compiled for the processor.
template <typename Visit>
void for_each_tile(const BlockLayout& layout, const Visit& visit) {
  if (layout.cols == 0) return;
  const int most = segments_per_tile(layout);
  const int64_t tiles_per_row = (layout.grid_cols + most - 1) / most;
  const int64_t elements = std::min(layout.cols, layout.block_cols * most);
  const int64_t grain = std::max<int64_t>(1, 32768 / elements);
  at::parallel_for(0, layout.rows * tiles_per_row, grain, [&](int64_t begin, int64_t end) {
    vectorised([&]() QAT_BODY {
      int64_t row = begin / tiles_per_row, col = begin % tiles_per_row;
      for (int64_t index = begin; index < end; ++index) {
        visit(tile_of(layout, row, col * most, most));
        if (++col == tiles_per_row) col = 0, ++row;
      }
      end_stream();
    });
  });
}

// Calls body(k, length) for every segment of a tile. The usual group sizes arrive as constants, so
// that the loops over them are unrolled.
template <typename Body>
QAT_HOST_DEVICE void for_each_segment(const Tile& tile, const Body& body) {
  const int whole = tile.last_length == tile.step ? tile.count : tile.count - 1;
  const auto run = [&](auto length) QAT_BODY {
    for (int k = 0; k < whole; ++k) body(k, length);
  };
  if (tile.step == 16) {
    run(std::integral_constant<int64_t, 16>());
  } else if (tile.step == 32) {
    run(std::integral_constant<int64_t, 32>());
  } else if (tile.step == 128) {
    run(std::integral_constant<int64_t, 128>());
  } else {
    run(tile.step);
  }
  if (whole < tile.count) body(whole, tile.last_length);
}

// How the results of a tile reach their tensor.
enum class Store {
  direct,    // written where they belong
  staged,    // collected first, because they overwrite what they are computed from
  streamed,  // collected first, and copied past the cache
};

inline Store store_for(const at::Tensor& result) {
  return streams(static_cast<int64_t>(result.nbytes())) ? Store::streamed : Store::direct;
}

// Calls write(k, offset, length, to) for pieces of every segment, which must write `length` results
// to `to`; offset counts from the start of segment k and is a multiple of kStage. `out` is the
// tensor's first element.
template <typename out_t, typename Write>
QAT_HOST_DEVICE void write_tile(const Tile& tile, Store store, out_t* out, const Write& write) {
  alignas(64) out_t stage[kStage];
  out_t* to = out + tile.begin;
  const auto finish = [&](out_t* at, int64_t length) QAT_BODY {
    const int64_t bytes = length * static_cast<int64_t>(sizeof(out_t));
    if (store == Store::streamed) stream_copy(at, stage, bytes);
    if (store == Store::staged) std::memcpy(at, stage, static_cast<size_t>(bytes));
  };
  const bool direct = store == Store::direct;
  if (tile.length() <= kStage) {
    out_t* piece = direct ? to : stage;
    for_each_segment(tile, [&](int k, auto length)
                               QAT_BODY { write(k, int64_t{0}, length, piece + k * tile.step); });
    return finish(to, tile.length());
  }
  for (int k = 0; k < tile.count; ++k) {
    const int64_t length = tile.length(k);
    for (int64_t offset = 0; offset < length; offset += kStage) {
      const int64_t piece = std::min(kStage, length - offset);
      out_t* at = to + k * tile.step + offset;
      write(k, offset, piece, direct ? at : stage);
      finish(at, piece);
    }
  }
}

}  // namespace qat
