#pragma once

// Scales and zero points of a tile (tiles.h), side by side, so that rounding and inverting sixteen
// of them costs what one does.

#include <type_traits>

#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/tiles.h"
#include "qat/ops/parameters.h"

namespace qat {

struct TileParams {
  float scale[kTile] = {};  // a short tile's last ones are inverted, too
  float inverse[kTile];
  float zero_point[kTile];  // or the offset
};

QAT_HOST_DEVICE void invert(TileParams& params) {
  for (int k = 0; k < kTile; ++k) params.inverse[k] = 1.0f / params.scale[k];
}

// Calls body with a constant of each value in turn until one is `value`: a loop in it then has no
// branches.
template <auto... kValues, typename Value, typename Body>
QAT_HOST_DEVICE void with_constant(Value value, const Body& body) {
  (void)((value == kValues && (body(std::integral_constant<Value, kValues>()), true)) || ...);
}
template <typename Body>
QAT_HOST_DEVICE void with_scale_code(ScaleCode code, const Body& body) {
  using enum ScaleCode;
  with_constant<float32, bfloat16, float16, e8m0_floor, e8m0_even, e8m0_ceil, e4m3, int6, int8>(
      code, body);
}

// (9) for the spans of a tile, compiled for each grid and code apart from the kernels that call it.
using FindParams = void (*)(const TileSpan& spans, const Levels& levels, TileParams& params);
FindParams find_params(const Quantizer& quantizer);

// Where the parameters of a tile come from: found from the range of each segment, and written; or
// read, as they are stored. Where there will be outer scales, those that are found are not stored
// yet.
class TileSource {
 public:
  TileSource(const Quantizer& quantizer, const FoundTensors& to)
      : grid_(quantizer.grid),
        levels_(quantizer.levels()),
        find_(find_params(quantizer)),
        found_scale_(to.scale.mutable_data_ptr<float>()),
        found_zero_(to.zero_point.mutable_data_ptr()) {}
  explicit TileSource(const StoredTensors& stored)
      : scale_(stored.scale.const_data_ptr<float>()),
        zero_(stored.zero_point ? stored.zero_point->const_data_ptr<float>() : nullptr) {}

  // Whether all elements are known to be finite.
  template <typename scalar_t>
  QAT_HOST_DEVICE bool operator()(const Tile& tile, const scalar_t* x, TileParams& params) const {
    if (!find_) {
      load(tile, params);
      return false;
    }
    const TileSpan spans = span_of(grid_, x, tile);
    find_(spans, levels_, params);
    for (int k = 0; k < tile.count; ++k)
      store(tile.first_block + k, {params.scale[k], params.zero_point[k]});
    return spans.finite;
  }

  QAT_HOST_DEVICE void store(int64_t block, QParams found) const {
    found_scale_[block] = found.scale;
    if (grid_ == Grid::offset)
      static_cast<float*>(found_zero_)[block] = found.zero_point;
    else
      static_cast<int8_t*>(found_zero_)[block] = static_cast<int8_t>(found.zero_point);
  }

 private:
  QAT_HOST_DEVICE void load(const Tile& tile, TileParams& params) const {
    for (int k = 0; k < tile.count; ++k) {
      params.scale[k] = scale_[tile.first_block + k];
      params.zero_point[k] = zero_ ? zero_[tile.first_block + k] : 0.0f;
    }
    for (int k = tile.count; k < kTile; ++k) params.scale[k] = 1.0f, params.zero_point[k] = 0.0f;
    invert(params);
  }

  Grid grid_ = Grid::narrow;
  Levels levels_{};
  FindParams find_ = nullptr;
  float* found_scale_ = nullptr;
  void* found_zero_ = nullptr;
  const float* scale_ = nullptr;
  const float* zero_ = nullptr;
};

}  // namespace qat
