#pragma once

// Rounding a tile whose parameters are known: the inner loop of every forward.

#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/tile_params.h"

namespace qat {

struct RoundTile {
  Levels levels;
  bool symmetric;    // the zero points are all 0
  bool offset;       // or they are offsets
  bool never_clips;  // qparams.h
  Store store = Store::direct;

  RoundTile(const Quantizer& quantizer, bool has_zero_points)
      : levels(quantizer.levels()),
        symmetric(!has_zero_points),
        offset(quantizer.has_offset()),
        never_clips(quantizer.never_clips()) {}

  // Writes (1) to (3) of every element. `finite`: no element of the tile needs to become NaN.
  template <typename scalar_t, typename out_t>
  QAT_HOST_DEVICE void operator()(const Tile& tile, const TileParams& params, bool finite,
                                  const scalar_t* in, out_t* out) const {
    const auto write = [&](const auto& value) QAT_BODY {
      if constexpr (kInPairs<scalar_t, out_t>)
        if (tile.step == kShort && tile.last_length == kShort)
          return write_short(tile, params, in, out, value);
      write_tile(tile, store, out, [&](int k, int64_t at, auto length, out_t* to) QAT_BODY {
        const float s = params.scale[k], inverse = params.inverse[k];
        const float z = params.zero_point[k];
        convert(in + tile.at(k) + at, to, length,
                [=](float x) QAT_BODY { return value(x, s, inverse, z); });
      });
    };
    if (levels.whole()) {
      const WholeLevels ends = whole_levels(levels);
      if (offset)
        return write([=](float x, float s, float inverse, float o) QAT_BODY {
          return affine::fake_quantize(x - o, s, inverse, 0.0f, ends) + o;
        });
      if (!finite)
        return write([=](float x, float s, float inverse, float z)
                         QAT_BODY { return affine::fake_quantize(x, s, inverse, z, ends); });
      if (symmetric && never_clips)
        return write([=](float x, float s, float inverse, float) QAT_BODY {
          return affine::dequantize(affine::level_of(x, inverse, 0.0f, ends), s, 0.0f);
        });
      return write([=](float x, float s, float inverse, float z) QAT_BODY {
        return affine::dequantize(affine::quantize(x, inverse, z, ends), s, z);
      });
    }
    if (levels.table) {
      const TableLevels ends = table_levels(levels);
      return write([=](float x, float s, float inverse, float)
                       QAT_BODY { return affine::fake_quantize(x, s, inverse, 0.0f, ends); });
    }
    const FloatLevels ends = float_levels(levels);
    if (!finite)
      return write([=](float x, float s, float inverse, float)
                       QAT_BODY { return affine::fake_quantize(x, s, inverse, 0.0f, ends); });
    if (never_clips)
      return write([=](float x, float s, float inverse, float)
                       QAT_BODY { return affine::round_float(x * inverse, ends) * s; });
    write([=](float x, float s, float inverse, float)
              QAT_BODY { return affine::quantize(x, inverse, 0.0f, ends) * s; });
  }

 private:
  // Segments of so many bfloat16 fill half a vector each: all of a tile are one loop, in which every
  // pair has parameters of its own.
  static constexpr int kShort = 16;
  template <typename scalar_t, typename Value>
  QAT_HOST_DEVICE void write_short(const Tile& tile, const TileParams& params, const scalar_t* in,
                                   scalar_t* out, const Value& value) const {
    constexpr int kPairs = kShort / 2;
    alignas(64) float scale[kTile * kPairs], inverse[kTile * kPairs], zero_point[kTile * kPairs];
    for (int k = 0; k < tile.count; ++k)
      for (int i = k * kPairs; i < (k + 1) * kPairs; ++i) {
        scale[i] = params.scale[k];
        inverse[i] = params.inverse[k];
        zero_point[i] = params.zero_point[k];
      }
    Tile whole = tile;
    whole.step = whole.last_length = tile.length();
    whole.count = 1;
    write_tile(whole, store, out, [&](int, int64_t at, int64_t length, scalar_t* to) QAT_BODY {
      convert_pairs(in + tile.begin + at, to, length, [&](float x, int64_t i) QAT_BODY {
        return value(x, scale[i], inverse[i], zero_point[i]);
      });
    });
  }
};

}  // namespace qat
