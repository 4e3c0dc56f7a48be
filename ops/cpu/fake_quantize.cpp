#include "qat/ops/fake_quantize.h"

#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/round_tile.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

using Mode = Quantizer::Mode;

void round_tiles(const at::Tensor& input, const BlockLayout& layout, const RoundTile& round,
                 const TileSource& source, const at::Tensor& y) {
  dispatch_in_out(input.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
      TileParams params;
      const bool finite = source(tile, in, params);
      round(tile, params, finite, in, out);
    });
  });
}

FakeQuantized fake_quantize_cpu(const at::Tensor& x, std::string_view text,
                                const OptionalTensor& scale, const OptionalTensor& zero_point,
                                const OptionalTensor& outer_scale,
                                std::optional<at::ScalarType> dtype) {
  const Quantizer quantizer = check_fake_quantize(x, text, scale, zero_point, outer_scale, dtype);
  const BlockLayout layout = layout_of(x, quantizer.block);
  const at::Tensor input = x.contiguous();
  const at::Tensor y = kept_empty_like(input, dtype.value_or(x.scalar_type()));
  RoundTile round{quantizer.levels(), true, quantizer.has_offset(), quantizer.never_clips(),
                  store_for(y)};
  // One pass for blocks of one row: a tile is still in the nearest cache when its scales are known.
  if (quantizer.mode == Mode::minmax && layout.block_rows == 1 && !quantizer.has_outer_scale()) {
    const auto found = empty_parameters(x, quantizer);
    round.symmetric = quantizer.grid != Grid::asymmetric;
    round_tiles(input, layout, round, TileSource(quantizer, found), y);
    return {y, found.scale, found.zero_point};
  }
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, outer_scale);
  round.symmetric = !stored.zero_point;
  round_tiles(input, layout, round, TileSource(stored), y);
  if (quantizer.mode == Mode::minmax) return {y, stored.scale, stored.found_zero_point};
  const auto [no_scale, no_zero_point] = no_parameters(x, quantizer);
  return {y, no_scale, no_zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { m.impl("fake_quantize", &fake_quantize_cpu); }

}  // namespace qat
