#include "qat/ops/cpu/tile_params.h"

namespace qat {
namespace {

template <typename Find>
QAT_HOST_DEVICE void find_all(const TileSpan& spans, int count, TileParams& params,
                              const Find& find) {
  vectorised([&]() QAT_BODY {
    for_each_lane(count, [&](int k) QAT_BODY {
      const QParams found = find(spans.low[k], spans.high[k]);
      params.scale[k] = found.scale;
      params.zero_point[k] = found.zero_point;
    });
  });
}

template <Grid kGrid, ScaleCode kCode>
void find_stored(const TileSpan& spans, int count, const Levels& levels, TileParams& params) {
  find_all(spans, count, params, [=](float low, float high) QAT_BODY {
    return qparams_of(low, high, kGrid, levels, kCode);
  });
}

template <Grid kGrid>
void find_unstored(const TileSpan& spans, int count, const Levels& levels, TileParams& params) {
  find_all(spans, count, params, [=](float low, float high) QAT_BODY {
    return unstored_qparams(low, high, kGrid, levels);
  });
}

// The outer scales of a tile.
QAT_HOST_DEVICE void gather(const OuterScales& outer, int64_t block, int count,
                            float (&to)[kTile]) {
  if (outer.step == 0) return for_each_lane(count, [&](int k) QAT_BODY { to[k] = outer[0]; });
  for (int k = 0; k < count; ++k) to[k] = outer[block + k];
  for_each_spare_lane(count, [&](int k) QAT_BODY { to[k] = 1.0f; });
}

}  // namespace

FindParams find_params(const Quantizer& quantizer) {
  // Floats share one formula.
  const Grid grid = is_float(quantizer.grid) ? Grid::narrow : quantizer.grid;
  FindParams found = nullptr;
  with_constant<Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric, Grid::offset>(
      grid, [&](auto constant_grid) {
        if (quantizer.has_outer_scale()) {
          found = find_unstored<constant_grid()>;
          return;
        }
        with_scale_code(quantizer.scale_code,
                        [&](auto code) { found = find_stored<constant_grid(), code()>; });
      });
  return found;
}

void RoundParams::operator()(int64_t block, int count, TileParams& params) const {
  const bool offset = shifts && quantizer.has_offset();
  const bool exact = shifts && quantizer.exact_offsets();
  vectorised([&]() QAT_BODY {
    with_scale_code(quantizer.scale_code, [&](auto code) QAT_BODY {
      float by[kTile];
      if (!outer.at && !exact) {
        for_each_lane(count, [&](int k) QAT_BODY {
          params.scale[k] = stored_scale(params.scale[k], code());
        });
      } else {
        gather(outer, block, count, by);
        for_each_lane(count, [&](int k) QAT_BODY {
          params.scale[k] = stored_scale(params.scale[k], code(), by[k], exact);
        });
      }
      if (!offset) return;
      gather(outer_offset, block, count, by);
      for_each_lane(count, [&](int k) QAT_BODY {
        params.zero_point[k] = stored_offset(params.zero_point[k], code(), by[k]);
      });
    });
    if (!shifts || offset) return;
    const Levels levels = quantizer.levels();
    for_each_lane(count, [&](int k) QAT_BODY {
      params.zero_point[k] = stored_zero_point(params.zero_point[k], levels);
    });
  });
}

}  // namespace qat
