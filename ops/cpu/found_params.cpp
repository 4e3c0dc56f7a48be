#include "qat/ops/candidates.h"
#include "qat/ops/cpu/round_scales.h"
#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/squared_error.h"
#include "qat/ops/cpu/tile_params.h"

namespace qat {
namespace {

// Asks for the elements of the next tile, as long as this one, while this one is computed.
template <typename scalar_t>
QAT_HOST_DEVICE void fetch_after(const scalar_t* x, int64_t length) {
  for (int64_t i = length; i < 2 * length && length <= kStage; i += 64 / sizeof(scalar_t))
    __builtin_prefetch(x + i);
}

// (7c)
QAT_HOST_DEVICE void find_powers(const TileSpan& spans, const Levels& levels, ScaleCode code,
                                 int count, TileParams& params) {
  using enum ScaleCode;
  with_constant<e8m0_floor, e8m0_even, e8m0_ceil>(code, [&](auto constant) QAT_BODY {
    for_each_lane(count, [&](int k) QAT_BODY {
      const QParams found =
          qparams_of(spans.low[k], spans.high[k], Grid::narrow, levels, constant());
      params.scale[k] = found.scale;
      params.zero_point[k] = found.zero_point;
    });
  });
}

// (9), the zero point of a grid that has one still to come: it depends on the scale as it is stored.
QAT_HOST_DEVICE void find_unstored(const TileSpan& spans, Grid grid, const Levels& levels,
                                   int count, TileParams& params) {
  using enum Grid;
  // Floats share one formula.
  with_constant<narrow, full, extreme, asymmetric, offset, iq4_nl>(
      is_float(grid) ? narrow : grid, [&](auto constant) QAT_BODY {
        for_each_lane(count, [&](int k) QAT_BODY {
          const QParams found = unstored_qparams(spans.low[k], spans.high[k], constant(), levels);
          params.scale[k] = found.scale;
          params.zero_point[k] = found.zero_point;
        });
      });
}

// (9): finds parameters from `spans`; rounds them unless `how` is null.
QAT_HOST_DEVICE void find_params(const TileSpan& spans, Grid grid, const Levels& levels,
                                 const RoundParams* how, int64_t block, int count,
                                 TileParams& params) {
  if (how && !how->outer.at && is_power_of_two(how->quantizer.scale_code))
    return find_powers(spans, levels, how->quantizer.scale_code, count, params);
  find_unstored(spans, grid, levels, count, params);
  if (!how) return;
  round_scales(*how, block, count, params);
  if (grid != Grid::asymmetric || !how->shifts) return;
  for_each_lane(count, [&](int k) QAT_BODY {
    const float below = spans.low[k] < 0.0f ? spans.low[k] : 0.0f;
    params.zero_point[k] = stored_zero_point(levels.min - below * (1.0f / params.scale[k]), levels);
  });
}

}  // namespace

// (9a) for levels of a float.
template <typename scalar_t>
QAT_HOST_DEVICE void TileSource::find_better(const Tile& tile, const scalar_t* x,
                                             const TileSpan& spans, TileParams& params) const {
  const Candidates candidates{grid_, levels_, ScaleCode::e4m3_four_over_six, false};
  float other[kTile], outer[kTile];
  for (int k = 0; k < tile.count; ++k) outer[k] = (*better_)[tile.first_block + k];
  for_each_spare_lane(tile.count, [&](int k) QAT_BODY { outer[k] = 1.0f; });
  for_each_lane(tile.count, [&](int k) QAT_BODY {
    params.scale[k] = candidates(spans.low[k], spans.high[k], {outer[k]}, 0).scale;
    other[k] = candidates(spans.low[k], spans.high[k], {outer[k]}, 1).scale;
    params.zero_point[k] = 0.0f;
  });
  const FloatLevels levels = float_levels(levels_);
  for_each_segment(tile, [&](int k, auto length) QAT_BODY {
    const auto error = [&](float scale) QAT_BODY {
      return squared_error(x + tile.at(k), length, nullptr, {scale, 0.0f}, false, levels);
    };
    if (error(other[k]) < error(params.scale[k])) params.scale[k] = other[k];
  });
}

template <typename scalar_t>
bool TileSource::find(const Tile& tile, const scalar_t* x, TileParams& params) const {
  bool finite = false;
  vectorised([&]() QAT_BODY {
    fetch_after(x + tile.begin, tile.length());
    const TileSpan spans = span_of(grid_, x, tile);
    finite = spans.finite;
    if (better_)
      find_better(tile, x, spans, params);
    else
      find_params(spans, grid_, levels_, round_ ? &*round_ : nullptr, tile.first_block, tile.count,
                  params);
    write(tile.first_block, tile.count, params);
  });
  return finite;
}

template bool TileSource::find(const Tile&, const float*, TileParams&) const;
template bool TileSource::find(const Tile&, const c10::Half*, TileParams&) const;
template bool TileSource::find(const Tile&, const c10::BFloat16*, TileParams&) const;

}  // namespace qat
