#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "qat/ops/arguments.h"
#include "qat/ops/cpu/vectorised.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

// Rows that are treated side by side, one to a lane of a vector.
constexpr int kRows = 16;
typedef float Lanes __attribute__((vector_size(kRows * sizeof(float)), may_alias));

template <typename Kind>
struct Problem {
  const float* weight;
  const float* offset;
  const float* transfer;  // transposed: what column j gets stands in its row
  const float* scale;
  const float* zero_point;  // or offset
  int64_t rows;
  int64_t cols;
  bool scale_per_column;
  bool offsets;
  Kind levels;
  float* codes;
  float* error;
  float* residual;
};

// What the errors so far ask of one column. Four sums side by side hide the latency of the adder; a
// GPU adds in the same order.
QAT_HOST_DEVICE Lanes feedback(const Lanes* errors, const float* shares, int64_t count) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int k = 0; k < 4; ++k) sums[k] += errors[i + k] * shares[i + k];
  for (int k = 0; i < count; ++i, ++k) sums[k] += errors[i] * shares[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// `errors` is room for one vector a column.
template <typename Kind>
QAT_HOST_DEVICE void round_rows(const Problem<Kind>& p, int64_t first, Lanes* errors) {
  const int count = static_cast<int>(std::min<int64_t>(kRows, p.rows - first));
  float scale[kRows], inverse[kRows], zero[kRows] = {}, above[kRows] = {}, target[kRows],
                                      wanted[kRows];
  for (int64_t col = 0; col < p.cols; ++col) {
    if (col == 0 || p.scale_per_column)
      for (int r = 0; r < kRows; ++r) {
        // Lanes beyond the last row repeat it.
        const int64_t row = first + std::min(r, count - 1);
        const int64_t at = p.scale_per_column ? row * p.cols + col : row;
        scale[r] = p.scale[at];
        inverse[r] = 1.0f / scale[r];
        if (p.zero_point) (p.offsets ? above : zero)[r] = p.zero_point[at];
      }
    const Lanes asked = feedback(errors, p.transfer + col * p.cols, col);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (first + std::min(r, count - 1)) * p.cols + col;
      wanted[r] = p.weight[at];
      target[r] = wanted[r] + p.offset[at] + asked[r];
    }
    float level[kRows], rounded[kRows];
    for (int r = 0; r < kRows; ++r) {
      level[r] = affine::quantize(target[r] - above[r], inverse[r], zero[r], p.levels);
      rounded[r] = affine::dequantize(level[r], scale[r], zero[r]);
    }
    if (p.offsets)
      for (int r = 0; r < kRows; ++r) rounded[r] += above[r];
    for (int r = 0; r < kRows; ++r) errors[col][r] = wanted[r] - rounded[r];
    for (int r = 0; r < count; ++r) {
      const int64_t at = (first + r) * p.cols + col;
      p.codes[at] = level[r];
      p.error[at] = wanted[r] - rounded[r];
      p.residual[at] = target[r] - rounded[r];
    }
  }
}

template <typename Kind>
void solve_tiles(const Problem<Kind>& problem) {
  const int64_t tiles = (problem.rows + kRows - 1) / kRows;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    // ATen's memory is aligned as vectors want it, which a std::vector of them is not.
    const at::Tensor room = at::empty({problem.cols, kRows}, at::kFloat);
    auto* errors = reinterpret_cast<Lanes*>(room.mutable_data_ptr<float>());
    vectorised([&]() QAT_BODY {
      for (int64_t tile = begin; tile < end; ++tile) round_rows(problem, tile * kRows, errors);
    });
  });
}

void solve(const Feedback& of) {
  const at::Tensor transposed = of.transfer.t().contiguous();
  const at::Tensor levels = at::empty_like(of.weight);
  with_kind(of.quantizer.levels(), [&](const auto& kind) {
    solve_tiles(Problem<std::decay_t<decltype(kind)>>{
        of.weight.const_data_ptr<float>(), of.offset.const_data_ptr<float>(),
        transposed.const_data_ptr<float>(), of.scale.const_data_ptr<float>(),
        data_or_null<float>(of.zero_point), of.weight.size(0), of.weight.size(1),
        of.scale.size(1) != 1, of.quantizer.has_offset(), kind, levels.mutable_data_ptr<float>(),
        of.error.mutable_data_ptr<float>(), of.residual.mutable_data_ptr<float>()});
  });
  of.codes.copy_(levels);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { implement_quantize_with_feedback(m, &solve); }

}  // namespace qat
