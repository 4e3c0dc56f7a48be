#include "qat/ops/encode.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <atomic>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kept_memory.h"

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
void encode_tiles(const at::Tensor& input, const BlockLayout& layout, const Quantizer& quantizer,
                  const TileSource& source, const at::Tensor& codes, const at::Tensor& scale) {
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const Levels levels = quantizer.levels();
  QAT_DISPATCH_FLOAT(input.scalar_type(), "encode", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_cpu(const at::Tensor& x,
                                                          std::string_view text,
                                                          const OptionalTensor& scale,
                                                          const OptionalTensor& zero_point,
                                                          const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_encode(x, text, scale, zero_point, outer_scale);
  const BlockLayout layout = layout_of(x, quantizer.block);
  const at::Tensor input = x.contiguous();
  const at::Tensor codes = kept_empty({layout.rows, code_layout(layout, quantizer.bits).per_row},
                                      x.options().dtype(at::kByte), Fit::tight);
  if (!scale && layout.block_rows == 1 && !quantizer.has_outer_scale()) {
    const FoundTensors found = empty_parameters(x, quantizer);
    encode_tiles(input, layout, quantizer, TileSource(quantizer, found), codes, found.scale);
    return {codes, found.scale, found.zero_point};
  }
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, outer_scale);
  const at::Tensor returned = stored.scale.clone();
  encode_tiles(input, layout, quantizer, TileSource(stored), codes, returned);
  return {codes, returned,
          stored.zero_point ? stored.zero_point->to(at::kChar)
                            : at::zeros_like(returned, returned.options().dtype(at::kChar))};
}

at::Tensor decode_cpu(
    const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
    const at::Tensor& zero_point,
    c10::SymInt cols_symbol,  // NOLINT(performance-unnecessary-value-param): schema
    at::ScalarType dtype) {
  const int64_t cols = cols_symbol.expect_int();
  const Quantizer quantizer = check_decode(codes, text, scale, zero_point, cols, dtype);
  const auto [height, width] = quantizer.block;
  const BlockLayout layout = make_layout(codes.size(0), cols, height, width);
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const Levels levels = quantizer.levels();
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous(),
                   zeros = zero_point.contiguous();
  const at::Tensor y = kept_empty({layout.rows, cols}, codes.options().dtype(dtype));
  QAT_DISPATCH_FLOAT(dtype, "decode", [&] {
    const uint8_t* in = input.const_data_ptr<uint8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = zeros.const_data_ptr<int8_t>();
    for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
      const uint8_t* from = in + first_byte(tile, layout, code);
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const int64_t b = tile.first_block + k;
        decode_segment(from + k * code.per_block, out + tile.at(k), length, code.shared,
                       scale_at[b], static_cast<float>(zero_at[b]), {levels.min, levels.max});
      });
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("encode", &encode_cpu);
  m.impl("decode", &decode_cpu);
}

}  // namespace qat
