#include "qat/ops/fake_quantize_dynamic.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cpu/round_tile.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

// One pass for blocks of one row: a tile is still in the nearest cache when its scales are known.
template <typename scalar_t, typename out_t>
void fake_quantize_rows(const at::Tensor& input, const BlockLayout& layout, int bits, Grid grid,
                        at::ScalarType scale_dtype, const at::Tensor& y, const at::Tensor& scale,
                        const at::Tensor& zero_point) {
  const scalar_t* in = input.const_data_ptr<scalar_t>();
  out_t* out = y.mutable_data_ptr<out_t>();
  float* scale_at = scale.mutable_data_ptr<float>();
  int8_t* zero_at = zero_point.mutable_data_ptr<int8_t>();
  const RoundTile round{range_of(grid, bits), grid != Grid::asymmetric, store_for(y),
                        never_clips(grid, scale_dtype)};
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    const bool finite = find_params(in, tile, grid, bits, scale_dtype, params);
    store_params(tile, params, scale_at, zero_at);
    round(tile, params, finite, in, out);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_cpu(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  check_fake_quantize_dynamic(x, block, bits, scale_dtype, dtype);
  const Grid grid = parse_grid("fake_quantize_dynamic", grid_text);
  const BlockLayout layout = layout_of(x, block);
  if (layout.block_rows > 1 || is_float8(grid)) {
    auto [scale, zero_point] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    const QuantRange range = range_of(grid, static_cast<int>(bits));
    return {fake_quantize(x, scale, zero_point, block, static_cast<int64_t>(range.min),
                          static_cast<int64_t>(range.max), dtype),
            scale, zero_point};
  }
  const at::Tensor input = x.contiguous();
  const at::Tensor y = kept_empty_like(input, dtype.value_or(x.scalar_type()));
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in, auto out) {
    fake_quantize_rows<decltype(in), decltype(out)>(input, layout, static_cast<int>(bits), grid,
                                                    scale_dtype, y, scale, zero_point);
  });
  return {y, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cpu); }

}  // namespace qat
