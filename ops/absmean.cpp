#include "qat/ops/absmean.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "qat/ops/checks.h"

namespace qat {
namespace {

// Elements that are in float32 at once.
constexpr int64_t kElements = int64_t{1} << 22;

// The sum over the last axis: of its halves added up, again and again. An axis of odd length is
// halved with a 0 after it.
at::Tensor sum_of_halves(at::Tensor x) {
  while (x.size(-1) > 1) {
    if (x.size(-1) % 2 != 0) x = at::constant_pad_nd(x, {0, 1});
    const int64_t half = x.size(-1) / 2;
    x = x.narrow(-1, 0, half).add(x.narrow(-1, half, half));
  }
  return x.squeeze(-1);
}

// Of whole rows of blocks of `rows` x `cols` elements; the last ones may be short.
at::Tensor means(const at::Tensor& x, int64_t rows, int64_t cols) {
  const auto short_of = [](int64_t axis, int64_t side) { return (side - axis % side) % side; };
  const at::Tensor finite = at::isfinite(x);
  const auto by_block = [&](const at::Tensor& of) {
    const at::Tensor padded =
        at::constant_pad_nd(of, {0, short_of(x.size(1), cols), 0, short_of(x.size(0), rows)});
    return padded.view({padded.size(0) / rows, rows, padded.size(1) / cols, cols})
        .transpose(1, 2)
        .reshape({padded.size(0) / rows, padded.size(1) / cols, rows * cols});
  };
  const at::Tensor magnitudes = at::where(finite, x.to(at::kFloat).abs(), 0.0);
  const at::Tensor count = by_block(finite).sum(-1).clamp_min_(1).to(at::kFloat);
  return sum_of_halves(by_block(magnitudes)).div(count);
}

}  // namespace

at::Tensor absmean(const at::Tensor& x, const std::array<int64_t, 2>& block) {
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor matrix = x.detach().reshape({layout.rows, layout.cols});
  if (layout.blocks() == 0)
    return at::zeros({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const int64_t in_rows = std::max<int64_t>(kElements / (layout.cols * layout.block_rows), 1);
  std::vector<at::Tensor> parts;
  for (int64_t row = 0; row < layout.rows; row += in_rows * layout.block_rows) {
    const int64_t count = std::min(in_rows * layout.block_rows, layout.rows - row);
    parts.push_back(means(matrix.narrow(0, row, count), layout.block_rows, layout.block_cols));
  }
  return at::cat(parts);
}

}  // namespace qat
