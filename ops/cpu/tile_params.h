#pragma once

// Scales and zero points of a tile (tiles.h), side by side, so that rounding and inverting sixteen
// of them costs what one does.

#include <optional>
#include <type_traits>

#include "qat/ops/arguments.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/tiles.h"
#include "qat/ops/parameters.h"

namespace qat {

struct TileSpan;  // span.h

struct TileParams {
  float scale[kTile] = {};  // a short tile's last ones are inverted, too
  float inverse[kTile];
  float zero_point[kTile];  // or the offset
};

QAT_HOST_DEVICE void invert(TileParams& params, int count) {
  for_each_lane(count, [&](int k) QAT_BODY { params.inverse[k] = 1.0f / params.scale[k]; });
}

// How the parameters of a tile are stored, (7), (8) and (8b). Outer scales are those of all blocks.
struct RoundParams {
  Quantizer quantizer;
  bool shifts = false;  // there are zero points or offsets to round
  OuterScales outer{};
  OuterScales outer_offset{};
};

// Rounds what was read or learned, the tile's first block being `block`; compiled once for all kernels.
void round_params(const RoundParams& how, int64_t block, int count, TileParams& params);

// Where the parameters of a tile come from, found from the range of each segment or read; whether
// they are rounded; and where they are written.
class TileSource {
 public:
  static TileSource found(const Quantizer& quantizer, const FoundTensors& to) {
    TileSource source;
    source.grid_ = quantizer.grid;
    source.levels_ = quantizer.levels();
    source.finds_ = true;
    if (!quantizer.has_outer_scale()) source.round_ = RoundParams{quantizer, quantizer.shifts()};
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
    if (finds_) return find(tile, x, params);
    read(tile.first_block, tile.count, params);
    return false;
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
    round_and_write(block, count, params);
  }

  QAT_HOST_DEVICE void write(int64_t block, QParams found) const {
    to_scale_[block] = found.scale;
    if (grid_ == Grid::offset)
      static_cast<float*>(to_zero_)[block] = found.zero_point;
    else
      static_cast<int8_t*>(to_zero_)[block] = static_cast<int8_t>(found.zero_point);
  }

 private:
  // Compiled apart from the kernels, once for each dtype (found_params.cpp).
  template <typename scalar_t>
  bool find(const Tile& tile, const scalar_t* x, TileParams& params) const;
  template <typename scalar_t>
  QAT_HOST_DEVICE void find_better(const Tile& tile, const scalar_t* x, const TileSpan& spans,
                                   TileParams& params) const;

  void write_to(const FoundTensors& to) {
    to_scale_ = to.scale.mutable_data_ptr<float>();
    to_zero_ = to.zero_point.mutable_data_ptr();
  }
  QAT_HOST_DEVICE void round_and_write(int64_t block, int count, TileParams& params) const {
    if (round_) round_params(*round_, block, count, params);
    write(block, count, params);
  }
  QAT_HOST_DEVICE void write(int64_t block, int count, TileParams& params) const {
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
  bool finds_ = false;
  const float* scale_ = nullptr;
  const float* zero_ = nullptr;
  std::optional<RoundParams> round_;
  std::optional<OuterScales> better_;  // outer scales, where the better of two scales is taken
  float* to_scale_ = nullptr;
  void* to_zero_ = nullptr;
};

}  // namespace qat
