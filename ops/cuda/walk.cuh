#pragma once

// The one way through a matrix: a few neighbouring threads take a segment (blocks.h), or a piece of
// a long one, in vectors of 16 bytes where the layout allows. A warp covers several short segments,
// which lie one after the other in memory.

#include <tuple>
#include <type_traits>
#include <utility>

#include "qat/ops/arguments.h"
#include "qat/ops/blocks.h"
#include "qat/ops/cuda/launch.cuh"

namespace qat {

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T at[kSize];
};

template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> load(const T* from, int64_t vector) {
  return reinterpret_cast<const Vector<T, kSize>*>(from)[vector];
}
template <int kSize, typename T>
__device__ __forceinline__ void store(T* to, int64_t vector, const Vector<T, kSize>& values) {
  reinterpret_cast<Vector<T, kSize>*>(to)[vector] = values;
}

// Elements to a vector, of which the largest type fills 16 bytes.
template <typename... Types>
constexpr int kPerVector = 16 / static_cast<int>(std::max({sizeof(Types)...}));

// Whether every segment is made of whole vectors at addresses that are multiples of theirs.
template <int kSize, typename... Types>
bool fits_vectors(const BlockLayout& layout, const Types*... data) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(data) % (sizeof(Types) * kSize) == 0) && ...);
  return aligned && layout.cols % kSize == 0 && layout.block_cols % kSize == 0;
}

// Calls body with the number of elements to a vector, 1 where they do not fit.
template <typename... Types, typename Body>
void with_vector_size(const BlockLayout& layout, const Body& body, const Types*... data) {
  constexpr int kSize = kPerVector<Types...>;
  if (fits_vectors<kSize>(layout, data...))
    body(std::integral_constant<int, kSize>());
  else
    body(std::integral_constant<int, 1>());
}

// What one thread does of a piece: vectors first + lane, first + lane + lanes, ... below last.
struct Share {
  bool active;      // else there is no piece: it takes part in shuffles alone
  int64_t piece;    // counted over all: segment * pieces + place in the segment
  int64_t segment;  // row * grid_cols + grid_col
  int64_t block;
  int64_t first;
  int64_t last;
  int lane;
  int lanes;
};

struct Walk {
  BlockLayout layout;  // in vectors
  int64_t pieces;      // of a segment
  int64_t piece;       // vectors of a whole one
  int shift;           // 2^shift threads to a piece
  bool even;           // all segments are of one length
  int64_t padded;      // pieces up to a whole warp
  Divider by_pieces, by_grid_cols, by_block_rows;

  // Pieces of at most `most` elements. A piece has `lanes` threads or, by default, as many of a
  // warp as have something to do.
  Walk(const BlockLayout& elements, int vector_size, int64_t most, int lanes_of_piece = 0)
      : layout(elements),
        even(elements.cols % elements.block_cols == 0),
        by_pieces(1),
        by_grid_cols(std::max<int64_t>(elements.grid_cols, 1)),
        by_block_rows(elements.block_rows) {
    layout.cols /= vector_size;
    layout.block_cols /= vector_size;
    piece = std::min(layout.block_cols, most / vector_size);
    pieces = (layout.block_cols + piece - 1) / piece;
    by_pieces = Divider(pieces);
    const int64_t wanted = lanes_of_piece != 0 ? lanes_of_piece : std::min<int64_t>(piece, kWarp);
    shift = 0;
    while (int64_t{1} << shift < wanted) ++shift;
    const int64_t together = std::max(1, kWarp >> shift);
    padded = (count() + together - 1) / together * together;
  }

  int64_t count() const { return layout.segments() * pieces; }

  __device__ __forceinline__ Share share(int64_t index) const {
    const int lanes = 1 << shift;
    Share at{index < layout.segments() * pieces,          index, index, 0, 0, 0,
             static_cast<int>(threadIdx.x) & (lanes - 1), lanes};
    if (!at.active) return at;
    int64_t skipped = 0, length = layout.block_cols;
    if (pieces > 1) {
      at.segment = by_pieces(index);
      skipped = (index - at.segment * pieces) * piece;
    }
    at.block = at.segment;
    at.first = at.segment * layout.block_cols;
    if (!even || layout.block_rows > 1) {
      const int64_t row = by_grid_cols(at.segment), col = at.segment - row * layout.grid_cols;
      at.block = by_block_rows(row) * layout.grid_cols + col;
      at.first = layout.offset_of(row, col);
      length = layout.segment_length(col);
    }
    at.last = at.first + (skipped + piece < length ? skipped + piece : length);
    at.first += skipped < length ? skipped : length;
    return at;
  }
};

// Elements of a piece where a long segment may be cut.
constexpr int64_t kPiece = 2048;
constexpr int64_t kWhole = INT64_MAX;

// Whole warps, and with `lanes` of a thread block whole ones, run through visit together.
template <typename Visit>
__global__ void walk_kernel(Walk walk, Visit visit) {
  for (int64_t index = this_thread() >> walk.shift; index < walk.padded;
       index += all_threads() >> walk.shift)
    visit(walk.share(index));
}

// An empty layout launches nothing.
template <typename Visit>
void launch_walk(const Walk& walk, const Visit& visit) {
  if (walk.count() == 0) return;
  QAT_LAUNCH(walk_kernel, blocks_for(walk.padded, kThreads >> walk.shift), walk, visit);
}

// out[i] = value(params(block of i), in[i]...), every float rounded once to out_t. `out` may be one
// of the inputs.
template <int kSize, typename Params, typename Value, typename out_t, typename... in_t>
struct Map {
  Params params;
  Value value;
  out_t* out;
  std::tuple<const in_t*...> in;

  __device__ __forceinline__ void operator()(const Share& share) const {
    if (!share.active) return;
    const auto p = params(share.block);
    for (int64_t at = share.first + share.lane; at < share.last; at += share.lanes)
      one(p, at, std::index_sequence_for<in_t...>());
  }
  template <typename Found, size_t... kIndex>
  __device__ __forceinline__ void one(const Found& p, int64_t at,
                                      std::index_sequence<kIndex...>) const {
    const std::tuple<Vector<in_t, kSize>...> x{load<kSize>(std::get<kIndex>(in), at)...};
    Vector<out_t, kSize> y;
    for (int j = 0; j < kSize; ++j)
      y.at[j] = static_cast<out_t>(value(p, static_cast<float>(std::get<kIndex>(x).at[j])...));
    store<kSize>(out, at, y);
  }
};

template <typename Params, typename Value, typename out_t, typename... in_t>
void launch_map(const BlockLayout& layout, const Params& params, const Value& value, out_t* out,
                const in_t*... in) {
  with_vector_size<out_t, in_t...>(
      layout,
      [&](auto size) {
        launch_walk(Walk(layout, size(), kPiece),
                    Map<size(), Params, Value, out_t, in_t...>{params, value, out, {in...}});
      },
      out, in...);
}

}  // namespace qat
