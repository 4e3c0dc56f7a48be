#pragma once

// Scales and zero points of a tile (tiles.h), side by side, so that rounding and inverting sixteen
// of them costs what one does.

#include <type_traits>

#include "qat/ops/arguments.h"
#include "qat/ops/candidates.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/squared_error.h"
#include "qat/ops/cpu/tiles.h"
#include "qat/ops/parameters.h"

namespace qat {

struct TileParams {
  float scale[kTile] = {};  // a short tile's last ones are inverted, too
  float inverse[kTile];
  float zero_point[kTile];  // or the offset
};

// Asks for the elements of the next tile, as long as this one, while this one is computed.
template <typename scalar_t>
QAT_HOST_DEVICE void fetch_after(const scalar_t* x, int64_t length) {
  for (int64_t i = length; i < 2 * length && length <= kStage; i += 64 / sizeof(scalar_t))
    __builtin_prefetch(x + i);
}

QAT_HOST_DEVICE void invert(TileParams& params, int count) {
  for_each_lane(count, [&](int k) QAT_BODY { params.inverse[k] = 1.0f / params.scale[k]; });
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
  with_constant<float32, bfloat16, float16, e8m0_floor, e8m0_even, e8m0_ceil, e4m3,
                e4m3_four_over_six, int6, int8, int4, int6_signed>(code, body);
}

// (9) for `count` spans of a tile, compiled for each grid and code apart from the kernels that call it;
// not rounded where scales have outer ones.
using FindParams = void (*)(const TileSpan& spans, int count, const Levels& levels,
                            TileParams& params);
FindParams find_params(const Quantizer& quantizer);

// What is found or learned as it will be stored, (7), (8) and (8b), the tile's first block being
// `block`.
struct RoundParams {
  Quantizer quantizer;
  bool shifts = false;  // there are zero points or offsets to round
  OuterScales outer{};
  OuterScales outer_offset{};

  void operator()(int64_t block, int count, TileParams& params) const;
};

// Where the parameters of a tile come from, found from the range of each segment or read; whether
// they are rounded; and where they are written.
class TileSource {
 public:
  static TileSource found(const Quantizer& quantizer, const FoundTensors& to) {
    TileSource source;
    source.grid_ = quantizer.grid;
    source.levels_ = quantizer.levels();
    source.find_ = find_params(quantizer);
    source.write_to(to);
    return source;
  }
  // Scales of two levels: multiples of `outer`.
  static TileSource found(const Quantizer& quantizer, OuterScales outer, const FoundTensors& to) {
    TileSource source = found(quantizer, to);
    if (quantizer.takes_better())
      source.better_ = outer;
    else
      source.round_ = RoundParams{quantizer, false, outer};
    return source;
  }
  static TileSource stored(const Quantizer& quantizer, const StoredTensors& stored) {
    TileSource source;
    source.scale_ = stored.scale.const_data_ptr<float>();
    source.zero_ = data_or_null<float>(stored.zero_point);
    if (!stored.rounded) source.round_ = RoundParams{quantizer, stored.zero_point.has_value()};
    return source;
  }
  static TileSource rounded(const Quantizer& quantizer, const LearnedTensors& learned,
                            const FoundTensors& to) {
    TileSource source;
    source.grid_ = quantizer.grid;
    source.scale_ = learned.scale.const_data_ptr<float>();
    source.zero_ = data_or_null<float>(learned.zero_point);
    source.round_ = RoundParams{quantizer, learned.zero_point.has_value(),
                                outer_of(learned.outer_scale), outer_of(learned.outer_offset)};
    source.write_to(to);
    return source;
  }

  // Whether all elements are known to be finite.
  template <typename scalar_t>
  QAT_HOST_DEVICE bool operator()(const Tile& tile, const scalar_t* x, TileParams& params) const {
    if (!find_) {
      read(tile.first_block, tile.count, params);
      return false;
    }
    fetch_after(x + tile.begin, tile.length());
    const TileSpan spans = span_of(grid_, x, tile);
    if (better_) {
      find_better(tile, x, spans, params);
      return spans.finite;
    }
    find_(spans, tile.count, levels_, params);
    finish(tile.first_block, tile.count, params);
    return spans.finite;
  }

  QAT_HOST_DEVICE void read(int64_t block, int count, TileParams& params) const {
    for (int k = 0; k < count; ++k) {
      params.scale[k] = canonical(scale_[block + k]);
      params.zero_point[k] = zero_ ? canonical(zero_[block + k]) : 0.0f;
    }
    for_each_spare_lane(count, [&](int k) QAT_BODY {
      params.scale[k] = 1.0f;
      params.zero_point[k] = 0.0f;
    });
    finish(block, count, params);
  }

  QAT_HOST_DEVICE void write(int64_t block, QParams found) const {
    to_scale_[block] = found.scale;
    if (grid_ == Grid::offset)
      static_cast<float*>(to_zero_)[block] = found.zero_point;
    else
      static_cast<int8_t*>(to_zero_)[block] = static_cast<int8_t>(found.zero_point);
  }

 private:
  // (9a) for levels of a float.
  template <typename scalar_t>
  QAT_HOST_DEVICE void find_better(const Tile& tile, const scalar_t* x, const TileSpan& spans,
                                   TileParams& params) const {
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
    finish(tile.first_block, tile.count, params);
  }
  void write_to(const FoundTensors& to) {
    to_scale_ = to.scale.mutable_data_ptr<float>();
    to_zero_ = to.zero_point.mutable_data_ptr();
  }
  QAT_HOST_DEVICE void finish(int64_t block, int count, TileParams& params) const {
    if (round_) (*round_)(block, count, params);
    invert(params, count);
    if (!to_scale_) return;
    write_all(params.scale, to_scale_ + block, count);
    if (grid_ == Grid::offset)
      write_all(params.zero_point, static_cast<float*>(to_zero_) + block, count);
    else
      write_all(params.zero_point, static_cast<int8_t*>(to_zero_) + block, count);
  }
  template <typename T>
  QAT_HOST_DEVICE static void write_all(const float (&from)[kTile], T* to, int count) {
    const auto run = [&](auto all) QAT_BODY {
      for (int k = 0; k < all; ++k) to[k] = static_cast<T>(from[k]);
    };
    count == kTile ? run(std::integral_constant<int, kTile>()) : run(count);
  }

  Grid grid_ = Grid::narrow;
  Levels levels_{};
  FindParams find_ = nullptr;
  const float* scale_ = nullptr;
  const float* zero_ = nullptr;
  std::optional<RoundParams> round_;
  std::optional<OuterScales> better_;  // outer scales, where the better of two scales is taken
  float* to_scale_ = nullptr;
  void* to_zero_ = nullptr;
};

}  // namespace qat
