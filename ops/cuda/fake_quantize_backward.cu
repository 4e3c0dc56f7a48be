#include "qat/ops/cuda/lane_sum.cuh"
#include "qat/ops/cuda/rounding.cuh"
#include "qat/ops/cuda/sum_rows.cuh"

namespace qat {
namespace {

// (4), for launch_map().
template <typename Round>
struct StraightThrough {
  Round round;
  __device__ __forceinline__ float operator()(const BlockParams& p, float grad, float x) const {
    return round.gradient(grad, x, p);
  }
};

// The sums of (5) and (6) over each segment, times `factor`.
struct Sums {
  float* scale;
  float* zero_point;
  float factor;
};

// (4), (5) and (6) of one vector.
template <int kSize, typename Round, typename scalar_t>
struct Gradients {
  Round round;
  const scalar_t* grad;
  const scalar_t* x;
  scalar_t* out;  // may be `grad` itself

  static constexpr bool kShifts = Round::kShift != Shift::none;

  __device__ __forceinline__ void operator()(int64_t at, const BlockParams& p,
                                             float (&scale_terms)[kSize],
                                             float (&zero_terms)[kSize]) const {
    auto g = load<kSize>(grad, at);
    const auto values = load<kSize>(x, at);
    for (int j = 0; j < kSize; ++j) {
      const float upstream = static_cast<float>(g.at[j]), value = static_cast<float>(values.at[j]);
      g.at[j] = static_cast<scalar_t>(round.gradient(upstream, value, p));
      scale_terms[j] = round.scale_gradient(upstream, value, p);
      if constexpr (kShifts) zero_terms[j] = round.zero_gradient(upstream, value, p);
    }
    store<kSize>(out, at, g);
  }
};

// Groups of 32 elements and more in a warp, a vector to a thread.
template <int kSize, typename Round, typename scalar_t>
struct LearnGroups {
  StoredParams params;
  Gradients<kSize, Round, scalar_t> gradients;
  Sums sums;

  __device__ __forceinline__ void operator()(const Share& share) const {
    float scale_terms[kSize] = {}, zero_terms[kSize] = {};
    if (share.active)
      gradients(share.first + share.lane, params(share.block), scale_terms, zero_terms);
    const float scale_sum = lane_sum(scale_terms, share.lanes);
    float zero_sum = 0.0f;
    if constexpr (Round::kShift != Shift::none) zero_sum = lane_sum(zero_terms, share.lanes);
    if (!share.active || share.lane != 0) return;
    sums.scale[share.segment] = scale_sum * sums.factor;
    if (Round::kShift != Shift::none) sums.zero_point[share.segment] = zero_sum * sums.factor;
  }
};

// Any segments, a warp each.
template <int kSize, typename Round, typename scalar_t>
struct LearnSegments {
  StoredParams params;
  Gradients<kSize, Round, scalar_t> gradients;
  Sums sums;

  __device__ __forceinline__ void operator()(const Share& share) const {
    __shared__ float room[kThreads * kSize];
    float* mine = room + threadIdx.x / kWarp * kWarp * kSize;
    float scale_sum = 0.0f, zero_sum = 0.0f;
    const BlockParams p = params(share.block);
    for (int64_t round = share.first; round < share.last; round += kWarp) {
      float scale_terms[kSize] = {}, zero_terms[kSize] = {};
      if (round + share.lane < share.last)
        gradients(round + share.lane, p, scale_terms, zero_terms);
      add_to_lane(scale_terms, mine, scale_sum);
      if constexpr (Round::kShift != Shift::none) add_to_lane(zero_terms, mine, zero_sum);
    }
    scale_sum = warp_sum(scale_sum);
    zero_sum = warp_sum(zero_sum);
    if (share.lane != 0) return;
    sums.scale[share.segment] = scale_sum * sums.factor;
    if (Round::kShift != Shift::none) sums.zero_point[share.segment] = zero_sum * sums.factor;
  }
};

template <typename Round, typename scalar_t>
void launch_learned(const BlockLayout& layout, const StoredParams& params, const Round& round,
                    const scalar_t* g, const scalar_t* in, scalar_t* out, const Sums& sums) {
  with_vector_size<scalar_t>(
      layout,
      [&](auto size) {
        const Gradients<size(), Round, scalar_t> gradients{round, g, in, out};
        const Walk groups(layout, size(), kWhole);
        const bool in_warp = groups.even && groups.piece == int64_t{1} << groups.shift;
        if (size() > 1 && in_warp && layout.block_cols >= kWarp)
          launch_walk(groups, LearnGroups<size(), Round, scalar_t>{params, gradients, sums});
        else
          launch_walk(Walk(layout, size(), kWhole, kWarp),
                      LearnSegments<size(), Round, scalar_t>{params, gradients, sums});
      },
      g, in, out);
}

void backward(const Blocks& blocks, const StoredTensors& stored, const GradientTensors& to) {
  with_rounding(blocks.quantizer, stored.zero_point.has_value(), [&](const auto& rounding) {
    using Round = std::decay_t<decltype(rounding)>;
    QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "fake_quantize_backward", [&] {
      const scalar_t* g = to.grad.const_data_ptr<scalar_t>();
      const scalar_t* in = blocks.x.const_data_ptr<scalar_t>();
      scalar_t* out = to.x.mutable_data_ptr<scalar_t>();
      if (blocks.quantizer.mode == Quantizer::Mode::learned)
        launch_learned(blocks.layout, StoredParams(stored), rounding, g, in, out,
                       Sums{to.scale.mutable_data_ptr<float>(),
                            to.zero_point.mutable_data_ptr<float>(), to.factor});
      else
        launch_map(blocks.layout, StoredParams(stored), StraightThrough<Round>{rounding}, out, g,
                   in);
    });
  });
}

at::Tensor sum_blocks(const at::Tensor& terms, const BlockLayout& layout, float factor) {
  const at::Tensor sums = at::empty({layout.grid_rows, layout.grid_cols}, terms.options());
  sum_rows<float, float>(terms, layout, 1, factor, sums);
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  implement_fake_quantize_backward(m, {Learned::rounded, &backward, &sum_blocks});
}

}  // namespace qat
