#include "qat/ops/cpu/tile_params.h"

namespace qat {
namespace {

template <typename Find>
QAT_HOST_DEVICE void find_all(const TileSpan& spans, TileParams& params, const Find& find) {
  vectorised([&]() QAT_BODY {
    for (int k = 0; k < kTile; ++k) {
      const QParams found = find(spans.low[k], spans.high[k]);
      params.scale[k] = found.scale;
      params.zero_point[k] = found.zero_point;
    }
    invert(params);
  });
}

template <Grid kGrid, ScaleCode kCode>
void find_stored(const TileSpan& spans, const Levels& levels, TileParams& params) {
  find_all(spans, params, [=](float low, float high) QAT_BODY {
    return qparams_of(low, high, kGrid, levels, kCode);
  });
}

template <Grid kGrid>
void find_unstored(const TileSpan& spans, const Levels& levels, TileParams& params) {
  find_all(spans, params, [=](float low, float high) QAT_BODY {
    return unstored_qparams(low, high, kGrid, levels);
  });
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

}  // namespace qat
