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

// Elements that are in float32 at once: on the host those that stay in its caches.
int64_t elements_at_once(const at::Tensor& x) { return int64_t{1} << (x.is_cpu() ? 18 : 24); }

// The sum over the first axis: of its halves added up, again and again. An axis of odd length is
// halved with a 0 after it.
at::Tensor sum_of_halves(at::Tensor x) {
  while (x.size(0) > 1) {
    if (x.size(0) % 2 != 0) x = at::constant_pad_nd(x, {0, 0, 0, 1});
    const int64_t half = x.size(0) / 2;
    x = x.narrow(0, 0, half).add(x.narrow(0, half, half));
  }
  return x.squeeze(0);
}

// Rows of blocks as [elements of a block, blocks], what is not there of short ones 0: halves of
// elements then lie side by side.
at::Tensor by_element(const at::Tensor& x, int64_t rows, int64_t cols) {
  const auto short_of = [](int64_t axis, int64_t side) { return (side - axis % side) % side; };
  const int64_t right = short_of(x.size(1), cols), below = short_of(x.size(0), rows);
  const at::Tensor whole = right + below == 0 ? x : at::constant_pad_nd(x, {0, right, 0, below});
  return whole.reshape({whole.size(0) / rows, rows, whole.size(1) / cols, cols})
      .permute({1, 3, 0, 2})
      .reshape({rows * cols, -1});
}

// Of whole rows of blocks of `rows` x `cols` elements; the last ones may be short.
at::Tensor means(const at::Tensor& x, int64_t rows, int64_t cols) {
  const at::Tensor finite = at::isfinite(x);
  const at::Tensor magnitudes = at::where(finite, x.to(at::kFloat).abs(), 0.0);
  const at::Tensor count = sum_of_halves(by_element(finite.to(at::kFloat), rows, cols));
  return sum_of_halves(by_element(magnitudes, rows, cols)).div(count.clamp_min(1.0));
}

}  // namespace

at::Tensor absmean(const at::Tensor& x, const std::array<int64_t, 2>& block) {
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor matrix = x.detach().reshape({layout.rows, layout.cols});
  if (layout.blocks() == 0)
    return at::zeros({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const int64_t in_rows =
      std::max<int64_t>(elements_at_once(x) / (layout.cols * layout.block_rows), 1);
  std::vector<at::Tensor> parts;
  for (int64_t row = 0; row < layout.rows; row += in_rows * layout.block_rows) {
    const int64_t count = std::min(in_rows * layout.block_rows, layout.rows - row);
    parts.push_back(means(matrix.narrow(0, row, count), layout.block_rows, layout.block_cols)
                        .view({-1, layout.grid_cols}));
  }
  return at::cat(parts);
}

}  // namespace qat
