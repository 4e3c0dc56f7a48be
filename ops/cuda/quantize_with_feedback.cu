#include "qat/ops/cuda/rounding.cuh"

namespace qat {
namespace {

template <typename Round, typename code_t>
struct Problem {
  const float* weight;
  const float* offset;
  const float* transfer;
  const float* scale;
  const float* zero_point;  // or offset
  int64_t rows;
  int64_t cols;
  bool scale_per_column;
  Round round;
  code_t* codes;
  float* error;
  float* residual;

  __device__ __forceinline__ BlockParams params(int64_t row, int64_t col) const {
    const int64_t at = scale_per_column ? row * cols + col : row;
    return inverted({scale[at], zero_point ? zero_point[at] : 0.0f});
  }
};

// Columns of a panel that a thread holds: 32 apart, so that a warp reads `transfer` side by side.
constexpr int kHeld = 4;
constexpr int64_t kPanel = kHeld * kWarp;

// A warp rounds a row, a panel of columns after the other. Each thread keeps what the errors so far
// ask of its columns, in four sums by the place of the error's column, in the order of the CPU's
// kernel.
template <typename Round, typename code_t>
__global__ void quantize_with_feedback_kernel(Problem<Round, code_t> p) {
  const int lane = lane_of_warp();
  for (int64_t row = this_thread() / kWarp; row < p.rows; row += all_threads() / kWarp) {
    for (int64_t panel = 0; panel < p.cols; panel += kPanel) {
      float sums[kHeld][4] = {};
      // What column i with `error` asks of those of the panel that come after it.
      const auto add = [&](int64_t i, int place, float error) {
        for (int k = 0; k < kHeld; ++k) {
          const int64_t col = panel + k * kWarp + lane;
          if (col > i && col < p.cols) sums[k][place] += error * p.transfer[i * p.cols + col];
        }
      };
      __syncwarp();  // the errors of the panels before are written
      for (int64_t i = 0; i < panel; i += 4)
        for (int place = 0; place < 4; ++place)
          add(i + place, place, p.error[row * p.cols + i + place]);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t col = panel + k * kWarp + lane;
        const bool mine = col < p.cols;
        const int64_t at = row * p.cols + (mine ? col : 0);
        const float wanted = p.weight[at], offset = p.offset[at];
        const BlockParams params = p.params(row, mine ? col : 0);
        for (int from = 0; from < kWarp; from += 4) {
#pragma unroll
          for (int place = 0; place < 4; ++place) {
            const int64_t i = panel + k * kWarp + from + place;
            if (i >= p.cols) break;
            const float target =
                wanted + offset + ((sums[k][0] + sums[k][1]) + (sums[k][2] + sums[k][3]));
            const float level = p.round.code(target, params);
            const float rounded =
                Round::after(affine::dequantize(level, params.scale, Round::zero(params)), params);
            const float error = wanted - rounded;
            if (lane == from + place) {
              p.codes[at] = static_cast<code_t>(level);
              p.error[at] = error;
              p.residual[at] = target - rounded;
            }
            add(i, place, __shfl_sync(kWholeWarp, error, from + place));
          }
        }
      }
    }
  }
}

void solve(const Feedback& of) {
  with_codes(of.quantizer, of.zero_point.has_value(), [&](const auto& rounding, auto code) {
    using Round = std::decay_t<decltype(rounding)>;
    using code_t = decltype(code);
    const auto kernel = quantize_with_feedback_kernel<Round, code_t>;
    const Problem<Round, code_t> problem{of.weight.const_data_ptr<float>(),
                                         of.offset.const_data_ptr<float>(),
                                         of.transfer.const_data_ptr<float>(),
                                         of.scale.const_data_ptr<float>(),
                                         data_or_null<float>(of.zero_point),
                                         of.weight.size(0),
                                         of.weight.size(1),
                                         of.scale.size(1) != 1,
                                         rounding,
                                         of.codes.mutable_data_ptr<code_t>(),
                                         of.error.mutable_data_ptr<float>(),
                                         of.residual.mutable_data_ptr<float>()};
    QAT_LAUNCH(kernel, blocks_for(of.weight.size(0), kThreads / kWarp), problem);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_quantize_with_feedback(m, &solve); }

}  // namespace qat
