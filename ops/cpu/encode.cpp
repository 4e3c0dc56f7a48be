#include "qat/ops/encode.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

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
                                    QuantRange range) {
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
                                    QuantRange range) {
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

// Marks the blocks of a tile that have elements which are not finite.
template <typename scalar_t>
void poison(const scalar_t* in, const Tile& tile, float* scale) {
  for (int k = 0; k < tile.count; ++k)
    for (int64_t i = tile.at(k); i < tile.at(k) + tile.length(k); ++i)
      if (!is_finite(static_cast<float>(in[i]))) scale[tile.first_block + k] = NAN;
}

struct Encoded {
  at::Tensor codes, scale, zero_point;
};

// Finds and writes the parameters unless some are given, which `to` then holds already: the rows of
// a block only add what is not finite.
template <typename scalar_t>
void encode_tiles(const at::Tensor& input, const BlockLayout& layout, int bits, Grid grid,
                  at::ScalarType scale_dtype, const float* given_scale, const int8_t* given_zero,
                  const Encoded& to) {
  const CodeLayout code = code_layout(layout, bits);
  const QuantRange range = range_of(grid, bits);
  const scalar_t* in = input.const_data_ptr<scalar_t>();
  uint8_t* out = to.codes.mutable_data_ptr<uint8_t>();
  float* scale_at = to.scale.mutable_data_ptr<float>();
  int8_t* zero_at = to.zero_point.mutable_data_ptr<int8_t>();
  for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
    TileParams params;
    bool finite;
    if (given_scale) {
      finite = magnitudes_of(in, tile).finite;
      load_params(tile, given_scale, given_zero, params);
    } else {
      finite = find_params(in, tile, grid, bits, scale_dtype, params);
      store_params(tile, params, scale_at, zero_at);
    }
    if (!finite) poison(in, tile, scale_at);
    const int64_t row = tile.first_segment / layout.grid_cols;
    const int64_t col = tile.first_segment % layout.grid_cols;
    uint8_t* codes = out + row * code.per_row + col * code.per_block;
    for_each_segment(tile, [&](int k, auto length) QAT_BODY {
      encode_segment(in + tile.at(k), codes + k * code.per_block, length, code.shared,
                     params.inverse[k], params.zero_point[k], range);
    });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_cpu(
    const at::Tensor& x, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t bits,
    std::string_view grid_text, at::ScalarType scale_dtype) {
  check_encode(x, scale, zero_point, block, bits, scale_dtype);
  check_integer_grid("encode", grid_text);
  const Grid grid = parse_grid("encode", grid_text);
  const BlockLayout layout = layout_of(x, block);
  if (!scale && layout.block_rows > 1) {
    const auto [found, zero] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    return encode_cpu(x, found, zero, block, bits, grid_text, scale_dtype);
  }
  const at::Tensor input = x.contiguous();
  const auto scales = contiguous(scale), zeros = contiguous(zero_point);
  const auto options = x.options();
  const Encoded to{kept_empty({layout.rows, code_layout(layout, bits).per_row},
                              options.dtype(at::kByte), Fit::tight),
                   at::empty({layout.grid_rows, layout.grid_cols}, options.dtype(at::kFloat)),
                   at::empty({layout.grid_rows, layout.grid_cols}, options.dtype(at::kChar))};
  if (scales) {
    to.scale.copy_(*scales);
    zeros ? to.zero_point.copy_(*zeros) : to.zero_point.zero_();
  }
  QAT_DISPATCH_FLOAT(x.scalar_type(), "encode", [&] {
    encode_tiles<scalar_t>(input, layout, static_cast<int>(bits), grid, scale_dtype,
                           data_or_null<float>(scales), data_or_null<int8_t>(zeros), to);
  });
  return {to.codes, to.scale, to.zero_point};
}

at::Tensor decode_cpu(
    const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point,
    at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    c10::SymInt cols_symbol,  // NOLINT(performance-unnecessary-value-param): schema
    at::ScalarType dtype) {
  const int64_t cols = cols_symbol.expect_int();
  const BlockLayout layout = check_decode(codes, scale, zero_point, block, bits, cols, dtype);
  const Grid grid = parse_grid("decode", grid_text);
  const CodeLayout code = code_layout(layout, bits);
  const QuantRange range = range_of(grid, static_cast<int>(bits));
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous(),
                   zeros = zero_point.contiguous();
  const at::Tensor y = kept_empty({layout.rows, cols}, codes.options().dtype(dtype));
  QAT_DISPATCH_FLOAT(dtype, "decode", [&] {
    const uint8_t* in = input.const_data_ptr<uint8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = zeros.const_data_ptr<int8_t>();
    for_each_tile(layout, [&](const Tile& tile) QAT_BODY {
      const int64_t row = tile.first_segment / layout.grid_cols;
      const int64_t col = tile.first_segment % layout.grid_cols;
      const uint8_t* from = in + row * code.per_row + col * code.per_block;
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const int64_t b = tile.first_block + k;
        decode_segment(from + k * code.per_block, out + tile.at(k), length, code.shared,
                       scale_at[b], static_cast<float>(zero_at[b]), range);
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
