#pragma once

// Rounding a tile whose parameters are known: the inner loop of every forward.

#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/tile_params.h"

namespace qat {

struct RoundTile {
  QuantRange range;
  bool symmetric;  // the zero points are all 0
  Store store;
  bool never_clips = false;  // qparams.h

  // Writes (1) to (3) of every element. `finite`: no element of the tile needs to become NaN.
  template <typename scalar_t, typename out_t>
  QAT_HOST_DEVICE void operator()(const Tile& tile, const TileParams& params, bool finite,
                                  const scalar_t* in, out_t* out) const {
    const QuantRange ends = range;
    const auto write = [&](const auto& value) QAT_BODY {
      write_tile(tile, store, out, [&](int k, int64_t offset, auto length, out_t* to) QAT_BODY {
        const float s = params.scale[k], inverse = params.inverse[k];
        const float z = params.zero_point[k];
        convert(in + tile.at(k) + offset, to, length,
                [=](float x) QAT_BODY { return value(x, s, inverse, z); });
      });
    };
    if (!finite)
      return write([=](float x, float s, float inverse, float z)
                       QAT_BODY { return affine::fake_quantize(x, s, inverse, z, ends); });
    if (symmetric && never_clips)
      return write([=](float x, float s, float inverse, float) QAT_BODY {
        return affine::dequantize(affine::level_of(x, inverse, 0.0f), s, 0.0f);
      });
    if (symmetric)
      return write([=](float x, float s, float inverse, float) QAT_BODY {
        return affine::dequantize(affine::quantize(x, inverse, 0.0f, ends), s, 0.0f);
      });
    write([=](float x, float s, float inverse, float z)
              QAT_BODY { return affine::dequantize(affine::quantize(x, inverse, z, ends), s, z); });
  }
};

}  // namespace qat
