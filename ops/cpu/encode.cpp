#include "qat/ops/encode.h"

#include <atomic>

#include "qat/ops/cpu/span.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

// Writes the codes of one segment.
template <typename scalar_t, typename Length>
QAT_HOST_DEVICE void encode_segment(const scalar_t* __restrict in, uint8_t* __restrict out,
                                    Length length, bool shared, float inverse, float z,
                                    WholeLevels range) {
  const auto code = [=](float x) QAT_BODY {
    return static_cast<uint32_t>(static_cast<int32_t>(affine::quantize(x, inverse, z, range)) -
                                 static_cast<int32_t>(range.min));
  };
  if (!shared) {
    for (int64_t i = 0; i < length; ++i)
      out[i] = static_cast<uint8_t>(code(static_cast<float>(in[i])));
    return;
  }
  for (int64_t i = 0; i < length / 2; ++i) {
    if constexpr (kInPairs<scalar_t>) {
      const uint32_t pair = reinterpret_cast<const Pair*>(in)[i];
      out[i] = static_cast<uint8_t>(code(low_of(pair)) | code(high_of(pair)) << 4);
    } else {
      out[i] = static_cast<uint8_t>(code(static_cast<float>(in[2 * i])) |
                                    code(static_cast<float>(in[2 * i + 1])) << 4);
    }
  }
  if (length % 2) out[length / 2] = static_cast<uint8_t>(code(static_cast<float>(in[length - 1])));
}

template <typename scalar_t, typename Length>
QAT_HOST_DEVICE void decode_segment(const uint8_t* __restrict in, scalar_t* __restrict out,
                                    Length length, bool shared, float s, float z,
                                    WholeLevels range) {
  const auto value = [=](int code) QAT_BODY {
    return affine::dequantize(static_cast<float>(code) + range.min, s, z);
  };
  if (!shared) {
    for (int64_t i = 0; i < length; ++i) out[i] = narrowed<scalar_t>(value(in[i]));
    return;
  }
  // Widened first: a loop over bytes and words together is vectorised for whole vectors of bytes,
  // of which a group has less than one.
  constexpr int64_t kPiece = 64;
  alignas(64) int32_t wide[kPiece];
  for (int64_t from = 0; from < length / 2; from += kPiece) {
    const int64_t count = length / 2 - from < kPiece ? length / 2 - from : kPiece;
    for (int64_t i = 0; i < count; ++i) wide[i] = in[from + i];
    for (int64_t i = 0; i < count; ++i) {
      const float low = value(wide[i] & 15), high = value(wide[i] >> 4);
      if constexpr (kInPairs<scalar_t>) {
        reinterpret_cast<Pair*>(out)[from + i] =
            upper_half(low) >> 16 | (upper_half(high) & 0xffff0000u);
      } else {
        out[2 * (from + i)] = static_cast<scalar_t>(low);
        out[2 * (from + i) + 1] = static_cast<scalar_t>(high);
      }
    }
  }
  if (length % 2) out[length - 1] = narrowed<scalar_t>(value(in[length / 2] & 15));
}

// Marks the blocks of a tile that have elements which are not finite. The rows of a block may do so
// at once.
template <typename scalar_t>
void poison(const scalar_t* in, const Tile& tile, float* scale) {
  for (int k = 0; k < tile.count; ++k)
    for (int64_t i = tile.at(k); i < tile.at(k) + tile.length(k); ++i)
      if (!is_finite(static_cast<float>(in[i])))
        std::atomic_ref(scale[tile.first_block + k]).store(NAN, std::memory_order_relaxed);
}

// Where the codes of a tile begin.
int64_t first_byte(const Tile& tile, const BlockLayout& layout, const CodeLayout& code) {
  return tile.first_segment / layout.grid_cols * code.per_row +
         tile.first_segment % layout.grid_cols * code.per_block;
}

// `scale` is what is returned; parameters that were found lie there already.
void encode_tiles(const Blocks& blocks, const TileSource& source, const at::Tensor& codes,
                  const at::Tensor& scale) {
  const BlockLayout& layout = blocks.layout;
  const CodeLayout code = code_layout(layout, blocks.quantizer.bits);
  const Levels levels = blocks.quantizer.levels();
  QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "encode", [&] {
    const scalar_t* in = blocks.x.const_data_ptr<scalar_t>();
    auto* out = codes.mutable_data_ptr<uint8_t>();
    auto* scale_at = scale.mutable_data_ptr<float>();
    for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
      TileParams params;
      if (!source(tile, in, params) && !magnitudes_of(in, tile).finite) poison(in, tile, scale_at);
      uint8_t* to = out + first_byte(tile, layout, code);
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        encode_segment(in + tile.at(k), to + k * code.per_block, length, code.shared,
                       params.inverse[k], params.zero_point[k], {levels.min, levels.max});
      });
    });
  });
}

void find_and_encode(const Blocks& blocks, const FoundTensors& found, const at::Tensor& codes) {
  encode_tiles(blocks, TileSource::found(blocks.quantizer, found), codes, found.scale);
}

void encode_stored(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes,
                   const at::Tensor& scale) {
  encode_tiles(blocks, TileSource::stored(blocks.quantizer, stored), codes, scale);
}

void decode_tiles(const at::Tensor& codes, const BlockLayout& layout, const Quantizer& quantizer,
                  const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& y) {
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const Levels levels = quantizer.levels();
  QAT_DISPATCH_FLOAT(y.scalar_type(), "decode", [&] {
    const uint8_t* in = codes.const_data_ptr<uint8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scale.const_data_ptr<float>();
    const int8_t* zero_at = zero_point.const_data_ptr<int8_t>();
    for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
      const uint8_t* from = in + first_byte(tile, layout, code);
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const int64_t b = tile.first_block + k;
        decode_segment(from + k * code.per_block, out + tile.at(k), length, code.shared,
                       canonical(scale_at[b]), static_cast<float>(zero_at[b]),
                       {levels.min, levels.max});
      });
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  implement_encode(m, {&find_and_encode, &encode_stored, &decode_tiles});
}

}  // namespace qat
