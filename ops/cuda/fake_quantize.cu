#include "qat/ops/cuda/range.cuh"
#include "qat/ops/cuda/rounding.cuh"

namespace qat {
namespace {

// Vectors that a thread holds while the ranges of their groups are found.
constexpr int kSteps = 4;

// Groups of 4 to 32 vectors, which follow each other in memory. A warp reads kSteps times 32
// vectors once; each lane then finds the parameters of one of their groups, so that all divisions
// are done side by side, and hands them to those that round.
template <int kSize, bool kEnds, typename Round, typename in_t, typename out_t>
__global__ void round_groups_kernel(int64_t vectors, int shift, Finder find, Round round,
                                    const in_t* in, out_t* out, Found found) {
  constexpr int kTile = kSteps * kWarp;
  const int lane = lane_of_warp();
  const int per_step = kWarp >> shift;  // groups
  for (int64_t tile = this_thread() / kWarp * kTile; tile < vectors;
       tile += all_threads() / kWarp * kTile) {
    Vector<in_t, kSize> x[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t at = tile + step * kWarp + lane;
      x[step] = at < vectors ? load<kSize>(in, at) : Vector<in_t, kSize>{};
    }
    SeenRange<kEnds> mine;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      SeenRange<kEnds> seen;
      seen.see(x[step]);
      seen = seen.over(1 << shift);
      const int from = (lane & (per_step - 1)) << shift;
      const SeenRange<kEnds> theirs{kEnds ? __shfl_sync(kWholeWarp, seen.low, from) : 0.0f,
                                    __shfl_sync(kWholeWarp, seen.high, from)};
      if (lane >> (5 - shift) == step) mine = theirs;
    }
    const BlockParams params = inverted(find(mine.low, mine.high));
    const int64_t group = (tile >> shift) + lane;
    if (lane < kSteps * per_step && group < vectors >> shift)
      found.store(group, {params.scale, params.shift});
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int from = step * per_step + (lane >> shift);
      const BlockParams p{
          __shfl_sync(kWholeWarp, params.scale, from),
          __shfl_sync(kWholeWarp, params.inverse, from),
          Round::kShift == Shift::none ? 0.0f : __shfl_sync(kWholeWarp, params.shift, from)};
      Vector<out_t, kSize> y;
      for (int j = 0; j < kSize; ++j)
        y.at[j] = static_cast<out_t>(round.value(static_cast<float>(x[step].at[j]), p));
      const int64_t at = tile + step * kWarp + lane;
      if (at < vectors) store<kSize>(out, at, y);
    }
  }
}

// Any blocks of one row: the threads of a segment find its range, then read it again, from a cache,
// to round it.
template <int kSize, bool kEnds, typename Round, typename in_t, typename out_t>
struct RoundSegment {
  Finder find;
  Round round;
  const in_t* in;
  out_t* out;
  Found found;

  __device__ __forceinline__ void operator()(const Share& share) const {
    SeenRange<kEnds> seen;
    seen.template see<kSize>(in, share);
    seen = seen.over(share.lanes);
    if (!share.active) return;
    const QParams params = find(seen.low, seen.high);
    if (share.lane == 0) found.store(share.block, params);
    const BlockParams p = inverted(params);
    for (int64_t at = share.first + share.lane; at < share.last; at += share.lanes) {
      const auto x = load<kSize>(in, at);
      Vector<out_t, kSize> y;
      for (int j = 0; j < kSize; ++j)
        y.at[j] = static_cast<out_t>(round.value(static_cast<float>(x.at[j]), p));
      store<kSize>(out, at, y);
    }
  }
};

// Calls body with whether the grid needs both ends of a range, where that is not plain from Round.
template <typename Round, typename Body>
void with_ends(Grid grid, const Body& body) {
  if constexpr (Round::kShift != Shift::none)
    body(std::true_type());
  else if constexpr (std::is_same_v<typename Round::Kind, FloatLevels>)
    body(std::false_type());
  else
    needs_ends(grid) ? body(std::true_type()) : body(std::false_type());
}

// Segments too few for a warp each to fill a GPU get a thread block each.
constexpr int64_t kFewSegments = 4096;
// Beyond this length one thread block is too little.
constexpr int64_t kLongSegment = 1 << 16;

template <bool kEnds, typename Round, typename in_t, typename out_t>
void launch_minmax(const BlockLayout& layout, const Finder& find, const Round& round,
                   const in_t* in, out_t* out, const Found& found) {
  with_vector_size<in_t, out_t>(
      layout,
      [&](auto size) {
        const Walk usual(layout, size(), kWhole);
        const int lanes = 1 << usual.shift;
        if (size() > 1 && usual.even && usual.piece == lanes && lanes >= kSteps) {
          if (usual.count() == 0) return;
          const int64_t vectors = layout.rows * layout.cols / size();
          const auto kernel = round_groups_kernel<size(), kEnds, Round, in_t, out_t>;
          QAT_LAUNCH(kernel, blocks_for(vectors, kThreads * kSteps), vectors, usual.shift, find,
                     round, in, out, found);
          return;
        }
        const bool few = layout.segments() < kFewSegments && layout.block_cols / size() > kThreads;
        launch_walk(few ? Walk(layout, size(), kWhole, kThreads) : usual,
                    RoundSegment<size(), kEnds, Round, in_t, out_t>{find, round, in, out, found});
      },
      in, out);
}

// value(params, x) of launch_map().
template <typename Round>
struct Value {
  Round round;
  __device__ __forceinline__ float operator()(const BlockParams& p, float x) const {
    return round.value(x, p);
  }
};

// Calls body(rounding, in, out) with the types of elements and levels.
template <typename Body>
void with_types(const Blocks& blocks, bool shifts, const at::Tensor& y, const Body& body) {
  with_rounding(blocks.quantizer, shifts, [&](const auto& rounding) {
    dispatch_in_out(blocks.x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
      body(rounding, blocks.x.const_data_ptr<decltype(in_type)>(),
           y.mutable_data_ptr<decltype(out_type)>());
    });
  });
}

bool finds(const Blocks& blocks) {
  const BlockLayout& layout = blocks.layout;
  return layout.block_rows == 1 && !blocks.quantizer.has_outer_scale() &&
         layout.block_cols <= kLongSegment;
}

void find_and_round(const Blocks& blocks, const OptionalTensor& /*outer_scale*/,
                    const FoundTensors& found, const at::Tensor& y) {
  const Quantizer& quantizer = blocks.quantizer;
  with_types(blocks, quantizer.shifts(), y, [&](const auto& rounding, const auto* in, auto* out) {
    with_ends<std::decay_t<decltype(rounding)>>(quantizer.grid, [&](auto ends) {
      launch_minmax<ends()>(blocks.layout, Finder(quantizer), rounding, in, out, Found(found));
    });
  });
}

void round_stored(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& y) {
  with_types(blocks, stored.zero_point.has_value(), y,
             [&](const auto& rounding, const auto* in, auto* out) {
               launch_map(blocks.layout, StoredParams(stored),
                          Value<std::decay_t<decltype(rounding)>>{rounding}, out, in);
             });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  implement_fake_quantize(m, {&finds, &find_and_round, Learned::rounded, &round_stored});
}

}  // namespace qat
