#pragma once

// Scales and zero points of a tile (tiles.h), side by side, so that rounding and inverting sixteen
// of them costs what one does.

#include <type_traits>

#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/tiles.h"
#include "qat/ops/qparams.h"

namespace qat {

struct TileParams {
  float scale[kTile] = {};  // a short tile's last ones are inverted, too
  float inverse[kTile];
  float zero_point[kTile];
};

QAT_HOST_DEVICE void invert(TileParams& params) {
  for (int k = 0; k < kTile; ++k) params.inverse[k] = 1.0f / params.scale[k];
}

// Calls body with grid and dtype as constants: the loop over a tile then has no branches.
template <typename Body>
QAT_HOST_DEVICE void with_constants(Grid grid, c10::ScalarType dtype, const Body& body) {
  const auto with_dtype = [&](auto constant_grid) QAT_BODY {
    using c10::ScalarType;
    if (dtype == ScalarType::BFloat16)
      return body(constant_grid, std::integral_constant<ScalarType, ScalarType::BFloat16>());
    if (dtype == ScalarType::Half)
      return body(constant_grid, std::integral_constant<ScalarType, ScalarType::Half>());
    body(constant_grid, std::integral_constant<ScalarType, ScalarType::Float>());
  };
  switch (grid) {
    case Grid::narrow:
      return with_dtype(std::integral_constant<Grid, Grid::narrow>());
    case Grid::full:
      return with_dtype(std::integral_constant<Grid, Grid::full>());
    case Grid::extreme:
      return with_dtype(std::integral_constant<Grid, Grid::extreme>());
    case Grid::asymmetric:
      return with_dtype(std::integral_constant<Grid, Grid::asymmetric>());
    case Grid::e4m3:
    case Grid::e5m2:
      break;  // FP8 is rounded by torch's own operators (float8.h)
  }
}

// Finds the parameters of a tile from the range of each segment; true when every element is finite.
template <typename scalar_t>
QAT_HOST_DEVICE bool find_params(const scalar_t* x, const Tile& tile, Grid grid, int bits,
                                 c10::ScalarType dtype, TileParams& params) {
  const TileSpan spans = span_of(grid, x, tile);
  with_constants(grid, dtype, [&](auto constant_grid, auto constant_dtype) QAT_BODY {
    for (int k = 0; k < kTile; ++k) {
      const QParams found =
          qparams_of(spans.low[k], spans.high[k], constant_grid(), bits, constant_dtype());
      params.scale[k] = found.scale;
      params.zero_point[k] = found.zero_point;
    }
  });
  invert(params);
  return spans.finite;
}

// Parameters as they are stored; no zero points means zeros.
QAT_HOST_DEVICE void load_params(const Tile& tile, const float* scale, const int8_t* zero_point,
                                 TileParams& params) {
  for (int k = 0; k < tile.count; ++k) {
    params.scale[k] = scale[tile.first_block + k];
    params.zero_point[k] = zero_point ? static_cast<float>(zero_point[tile.first_block + k]) : 0.0f;
  }
  for (int k = tile.count; k < kTile; ++k) params.scale[k] = 1.0f, params.zero_point[k] = 0.0f;
  invert(params);
}

// Learned parameters, rounded as they will be stored (7), (8).
QAT_HOST_DEVICE void round_params(const Tile& tile, const float* scale, const float* zero_point,
                                  QuantRange range, c10::ScalarType dtype, TileParams& params) {
  for (int k = 0; k < kTile; ++k) {
    params.scale[k] = k < tile.count ? scale[tile.first_block + k] : 1.0f;
    params.zero_point[k] = zero_point && k < tile.count ? zero_point[tile.first_block + k] : 0.0f;
  }
  const bool exact_offsets = zero_point && has_exact_offsets(range, dtype);
  with_constants(Grid::narrow, dtype, [&](auto, auto constant_dtype) QAT_BODY {
    for (int k = 0; k < kTile; ++k) {
      params.scale[k] = stored_scale(params.scale[k], constant_dtype(), exact_offsets);
      params.zero_point[k] = stored_zero_point(params.zero_point[k], range);
    }
  });
  invert(params);
}

QAT_HOST_DEVICE void store_params(const Tile& tile, const TileParams& params, float* scale,
                                  int8_t* zero_point) {
  for (int k = 0; k < tile.count; ++k) {
    scale[tile.first_block + k] = params.scale[k];
    zero_point[tile.first_block + k] = static_cast<int8_t>(params.zero_point[k]);
  }
}

}  // namespace qat
