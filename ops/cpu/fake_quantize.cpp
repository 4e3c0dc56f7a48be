#include "qat/ops/cpu/choose_qparams.h"
#include "qat/ops/cpu/round_tile.h"

namespace qat {
namespace {

void round_tiles(const Blocks& blocks, RoundTile round, const TileSource& source,
                 const at::Tensor& y) {
  round.store = store_for(y);
  dispatch_in_out(blocks.x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    const auto* in = blocks.x.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    for_each_tile(blocks.layout, [&](const Tile& tile) QAT_BODY {
      TileParams params;
      const bool finite = source(tile, in, params);
      round(tile, params, finite, in, out);
    });
  });
}

// The outer scale of all blocks is that of the largest element, where scales grow with it.
bool has_one_outer(const Quantizer& quantizer) {
  return quantizer.outer_block == std::array<int64_t, 2>{-1, -1} && !quantizer.shifts();
}

at::Tensor one_outer_scale(const Blocks& blocks) {
  Quantizer of_all = blocks.quantizer;
  of_all.block = {-1, -1};
  const FoundTensors largest = empty_parameters(blocks.x, of_all);
  choose_params(Blocks(blocks.x, of_all), {}, largest);
  return outer_scales(largest.scale, of_all);
}

// Blocks of one row: a tile is still in the nearest cache when its scales are known.
bool finds(const Blocks& blocks) {
  const Quantizer& quantizer = blocks.quantizer;
  return blocks.layout.block_rows == 1 &&
         (!quantizer.has_outer_scale() || has_one_outer(quantizer));
}

void find_and_round(const Blocks& blocks, const OptionalTensor& outer_scale,
                    const FoundTensors& found, const at::Tensor& y) {
  const Quantizer& quantizer = blocks.quantizer;
  const RoundTile round(quantizer, quantizer.grid == Grid::asymmetric);
  if (!quantizer.has_outer_scale() || blocks.x.numel() == 0)
    return round_tiles(blocks, round, TileSource::found(quantizer, found), y);
  const at::Tensor outer = outer_scale ? outer_scale->contiguous() : one_outer_scale(blocks);
  round_tiles(blocks, round, TileSource::found(quantizer, outer_of(outer), found), y);
}

void round_stored(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& y) {
  const Quantizer& quantizer = blocks.quantizer;
  round_tiles(blocks, RoundTile(quantizer, stored.zero_point.has_value()),
              TileSource::stored(quantizer, stored), y);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  implement_fake_quantize(m, {&finds, &find_and_round, Learned::as_given, &round_stored});
}

}  // namespace qat
