#include <ATen/ops/empty.h>

#include "qat/ops/candidates.h"
#include "qat/ops/cuda/range.cuh"
#include "qat/ops/cuda/rounding.cuh"
#include "qat/ops/cuda/sum_rows.cuh"

namespace qat {
namespace {

// What is known of each block before its parameters: the ends of its range.
struct Ranges {
  float* low;
  float* high;
};

template <int kSize, bool kEnds, typename scalar_t>
struct SeePiece {
  const scalar_t* x;
  Ranges pieces;

  __device__ __forceinline__ void operator()(const Share& share) const {
    SeenRange<kEnds> seen;
    seen.template see<kSize>(x, share);
    seen = seen.over(share.lanes);
    if (!share.active || share.lane != 0) return;
    pieces.low[share.piece] = seen.low;
    pieces.high[share.piece] = seen.high;
  }
};

// Joins the pieces of a block, for which it has `lanes` threads, as SeenRange::over() takes them. A
// block without finite elements counts as one of zeros.
__global__ void join_pieces_kernel(BlockLayout layout, int64_t pieces, int lanes, Ranges of_pieces,
                                   Ranges of_blocks) {
  const int64_t blocks = layout.blocks();
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t padded = lanes < kWarp ? (blocks + kWarp - 1) / kWarp * kWarp : blocks;
  for (int64_t block = this_thread() / lanes; block < padded; block += all_threads() / lanes) {
    SeenRange<true> seen;
    if (block < blocks) {
      const int64_t first = block / layout.grid_cols * layout.block_rows;
      const int64_t left = layout.rows - first;
      const int64_t rows = left < layout.block_rows ? left : layout.block_rows;
      const int64_t col = block % layout.grid_cols;
      for (int64_t i = lane; i < rows * pieces; i += lanes) {
        const int64_t row = pieces == 1 ? i : i / pieces;
        const int64_t at = ((first + row) * layout.grid_cols + col) * pieces + i - row * pieces;
        seen.join({of_pieces.low[at], of_pieces.high[at]});
      }
    }
    seen = seen.over(lanes);
    if (block >= blocks || lane != 0) continue;
    const bool any = seen.low <= seen.high;
    of_blocks.low[block] = any ? seen.low : 0.0f;
    of_blocks.high[block] = any ? seen.high : 0.0f;
  }
}

// The ranges of all blocks, [2, blocks].
template <typename scalar_t>
at::Tensor ranges_of(const at::Tensor& input, const BlockLayout& layout, Grid grid) {
  const auto options = input.options().dtype(at::kFloat);
  const auto room = [&](int64_t count) { return at::empty({2, count}, options); };
  const auto ends_of = [](const at::Tensor& ranges) {
    float* low = ranges.mutable_data_ptr<float>();
    return Ranges{low, low + ranges.size(1)};
  };
  const scalar_t* x = input.const_data_ptr<scalar_t>();
  int64_t pieces = 1;
  at::Tensor found;
  with_vector_size<scalar_t>(
      layout,
      [&](auto size) {
        const Walk walk(layout, size(), kPiece);
        pieces = walk.pieces;
        found = room(walk.count());
        if (needs_ends(grid))
          launch_walk(walk, SeePiece<size(), true, scalar_t>{x, ends_of(found)});
        else
          launch_walk(walk, SeePiece<size(), false, scalar_t>{x, ends_of(found)});
      },
      x);
  const int64_t blocks = layout.blocks(), parts = layout.block_rows * pieces;
  const at::Tensor joined = room(blocks);
  const int lanes = parts == 1 ? 1 : parts < kThreads ? kWarp : kThreads;
  QAT_LAUNCH(join_pieces_kernel, blocks_for(blocks, kThreads / lanes), layout, pieces, lanes,
             ends_of(found), ends_of(joined));
  return joined;
}

__global__ void find_kernel(int64_t blocks, Finder find, Ranges ranges, Found found) {
  for (int64_t block = this_thread(); block < blocks; block += all_threads())
    found.store(block, find(ranges.low[block], ranges.high[block]));
}

// What is tried for each block under its outer scales.
struct Tried {
  Candidates candidates;
  Ranges ranges;
  OuterScales outer, outer_offset;

  __device__ __forceinline__ QParams operator()(int64_t block, int step) const {
    return candidates(ranges.low[block], ranges.high[block], {outer[block], outer_offset[block]},
                      step);
  }
};

__global__ void store_first_kernel(int64_t blocks, Tried tried, Found found) {
  for (int64_t block = this_thread(); block < blocks; block += all_threads())
    found.store(block, tried(block, 0));
}

// The weighted sum of squared errors of a segment, in the order of LaneSum, for some of
// the candidates: errors[step - first_step, segment].
template <typename Round, typename scalar_t>
struct SquaredErrors {
  BlockLayout layout;
  Tried tried;
  Round round;
  const scalar_t* x;
  const float* importance;  // of the columns; may be null
  int first_step;
  int steps;
  float* errors;

  __device__ __forceinline__ void operator()(const Share& share) const {
    const float* weights = importance ? importance + share.first % layout.cols : nullptr;
    for (int step = 0; step < steps; ++step) {
      const BlockParams p = inverted(tried(share.block, first_step + step));
      float sum = 0.0f;
      for (int64_t at = share.first + share.lane; at < share.last; at += kWarp) {
        const float shifted = round.before(static_cast<float>(x[at]), p);
        const float error = shifted - affine::fake_quantize(shifted, p.scale, p.inverse,
                                                            round.zero(p), round.levels);
        const float term = is_finite(shifted) ? error * error : 0.0f;
        sum += weights ? term * weights[at - share.first] : term;
      }
      sum = warp_sum(sum);
      if (share.lane == 0) errors[step * layout.segments() + share.segment] = sum;
    }
  }
};

// Keeps the candidate with the smallest error, the first of equals.
__global__ void keep_best_kernel(int64_t blocks, Tried tried, int first_step, int steps,
                                 const double* costs, double* least, Found found) {
  for (int64_t block = this_thread(); block < blocks; block += all_threads()) {
    int best = first_step == 0 ? 0 : -1;
    double cost = first_step == 0 ? costs[block] : least[block];
    for (int step = best + 1; step < steps; ++step) {
      const double other = costs[step * blocks + block];
      if (other < cost) cost = other, best = first_step + step;
    }
    least[block] = cost;
    if (best >= 0) found.store(block, tried(block, best));
  }
}

// Errors that are kept at once.
constexpr int64_t kMostErrors = 1 << 23;

template <typename scalar_t>
void take_best(const Blocks& of, const OptionalTensor& importance, const Tried& tried,
               const Found& found) {
  const BlockLayout& layout = of.layout;
  const int64_t blocks = layout.blocks();
  const int count = tried.candidates.count();
  const int64_t at_once = std::clamp<int64_t>(kMostErrors / layout.segments(), 1, count);
  const auto float64 = of.x.options().dtype(at::kDouble);
  const at::Tensor costs = at::empty({at_once, blocks}, float64),
                   least = at::empty({blocks}, float64),
                   errors = at::empty({at_once, layout.segments()}, float64.dtype(at::kFloat));
  for (int step = 0; step < count; step += static_cast<int>(at_once)) {
    const int steps = std::min<int>(static_cast<int>(at_once), count - step);
    with_rounding(of.quantizer, of.quantizer.shifts(), [&](const auto& rounding) {
      launch_walk(
          Walk(layout, 1, kWhole, kWarp),
          SquaredErrors<std::decay_t<decltype(rounding)>, scalar_t>{
              layout, tried, rounding, of.x.const_data_ptr<scalar_t>(),
              data_or_null<float>(importance), step, steps, errors.mutable_data_ptr<float>()});
    });
    sum_rows<float, double>(errors, layout, steps, 1.0, costs);
    QAT_LAUNCH(keep_best_kernel, blocks_for(blocks, kThreads), blocks, tried, step, steps,
               costs.const_data_ptr<double>(), least.mutable_data_ptr<double>(), found);
  }
}

void choose(const Blocks& blocks, const Choosing& how, const FoundTensors& to) {
  const auto& [x, quantizer, layout] = blocks;
  const int64_t count = layout.blocks();
  QAT_DISPATCH_FLOAT(x.scalar_type(), "choose_qparams", [&] {
    const at::Tensor joined = ranges_of<scalar_t>(blocks.x, blocks.layout, blocks.quantizer.grid);
    float* low = joined.mutable_data_ptr<float>();
    const Ranges ranges{low, low + count};
    const Tried tried{{blocks.quantizer.grid, blocks.quantizer.levels(),
                       blocks.quantizer.scale_code, how.searching},
                      ranges,
                      outer_of(how.outer_scale),
                      outer_of(how.outer_offset)};
    const int launched = blocks_for(count, kThreads);
    if (blocks.quantizer.has_outer_scale() && !how.outer_scale)
      QAT_LAUNCH(find_kernel, launched, count, Finder(blocks.quantizer), ranges, Found(to));
    else if (tried.candidates.count() == 1)
      QAT_LAUNCH(store_first_kernel, launched, count, tried, Found(to));
    else
      take_best<scalar_t>(blocks, how.importance, tried, Found(to));
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_choose_qparams(m, &choose); }

}  // namespace qat
