#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "qat/ops/cuda/rounding.cuh"
#include "qat/ops/encode.h"

namespace qat {
namespace {

// Codes that begin where a piece of a segment does. Whole vectors fill whole bytes, so that theirs
// lie as the elements do.
struct Bytes {
  BlockLayout layout;
  CodeLayout code;

  __device__ __forceinline__ int64_t first_of(const Share& share) const {
    const int64_t row = share.segment / layout.grid_cols;
    const int64_t col = share.segment - row * layout.grid_cols;
    return row * code.per_row + col * code.per_block +
           code.bytes_of(share.first - layout.offset_of(row, col));
  }
};

// An element that is not finite marks its block.
template <int kSize, bool kShared, typename scalar_t>
struct Encode {
  Bytes bytes;
  StoredParams params;
  Rounding<WholeLevels, Shift::level> round;
  const scalar_t* in;
  uint8_t* codes;
  float* scale;

  __device__ __forceinline__ void operator()(const Share& share) const {
    if (!share.active) return;
    const BlockParams p = params(share.block);
    bool finite = true;
    const auto code_of = [&](scalar_t element) {
      const float x = static_cast<float>(element);
      finite &= is_finite(x);
      return static_cast<int>(round.code(x, p)) - static_cast<int>(round.levels.min);
    };
    if constexpr (kSize > 1) {
      constexpr int kBytes = kShared ? kSize / 2 : kSize;
      for (int64_t at = share.first + share.lane; at < share.last; at += share.lanes) {
        const auto x = load<kSize>(in, at);
        Vector<uint8_t, kBytes> y;
        for (int j = 0; j < kBytes; ++j)
          y.at[j] = static_cast<uint8_t>(
              kShared ? code_of(x.at[2 * j]) | code_of(x.at[2 * j + 1]) << 4 : code_of(x.at[j]));
        store<kBytes>(codes, at, y);
      }
    } else {
      uint8_t* to = codes + bytes.first_of(share);
      const int64_t count = bytes.code.bytes_of(share.last - share.first);
      for (int64_t j = share.lane; j < count; j += share.lanes) {
        const int64_t at = share.first + (kShared ? 2 * j : j);
        int byte = code_of(in[at]);
        if (kShared && at + 1 < share.last) byte |= code_of(in[at + 1]) << 4;
        to[j] = static_cast<uint8_t>(byte);
      }
    }
    if (!finite) scale[share.block] = NAN;
  }
};

template <int kSize, bool kShared, typename scalar_t>
struct Decode {
  Bytes bytes;
  const float* scale;
  const int8_t* zero_point;
  float lowest;
  const uint8_t* codes;
  scalar_t* out;

  __device__ __forceinline__ void operator()(const Share& share) const {
    if (!share.active) return;
    const float s = scale[share.block], z = static_cast<float>(zero_point[share.block]);
    const auto value = [&](int code) {
      return static_cast<scalar_t>(affine::dequantize(static_cast<float>(code) + lowest, s, z));
    };
    if constexpr (kSize > 1) {
      constexpr int kBytes = kShared ? kSize / 2 : kSize;
      for (int64_t at = share.first + share.lane; at < share.last; at += share.lanes) {
        const auto x = load<kBytes>(codes, at);
        Vector<scalar_t, kSize> y;
        for (int j = 0; j < kSize; ++j)
          y.at[j] = value(kShared ? x.at[j / 2] >> (j % 2 * 4) & 15 : x.at[j]);
        store<kSize>(out, at, y);
      }
    } else {
      const uint8_t* from = codes + bytes.first_of(share);
      const int64_t count = bytes.code.bytes_of(share.last - share.first);
      for (int64_t j = share.lane; j < count; j += share.lanes) {
        const int64_t at = share.first + (kShared ? 2 * j : j);
        out[at] = value(kShared ? from[j] & 15 : from[j]);
        if (kShared && at + 1 < share.last) out[at + 1] = value(from[j] >> 4);
      }
    }
  }
};

// Calls body with the elements to a vector and whether two codes share a byte. Codes must have the
// alignment that theirs ask for, which those of a new tensor have.
template <typename scalar_t, typename Body>
void with_sizes(const BlockLayout& layout, const CodeLayout& code, const uint8_t* codes,
                const scalar_t* elements, const Body& body) {
  const bool aligned = reinterpret_cast<uintptr_t>(codes) % 16 == 0;
  with_vector_size<scalar_t>(
      layout,
      [&](auto size) {
        const auto run = [&](auto chosen) {
          code.shared ? body(chosen, std::true_type()) : body(chosen, std::false_type());
        };
        aligned ? run(size) : run(std::integral_constant<int, 1>());
      },
      elements);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_cuda(const at::Tensor& x,
                                                           std::string_view text,
                                                           const OptionalTensor& scale,
                                                           const OptionalTensor& zero_point,
                                                           const OptionalTensor& outer_scale) {
  const Quantizer quantizer = check_encode(x, text, scale, zero_point, outer_scale);
  const c10::cuda::CUDAGuard on_device(x.device());
  const BlockLayout layout = layout_of(x, quantizer.block);
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const at::Tensor input = x.contiguous();
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, outer_scale);
  const at::Tensor returned = stored.scale.clone();
  const at::Tensor codes = at::empty({layout.rows, code.per_row}, x.options().dtype(at::kByte));
  const Rounding<WholeLevels, Shift::level> rounding{whole_levels(quantizer.levels())};
  QAT_DISPATCH_FLOAT(x.scalar_type(), "encode", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    auto* to = codes.mutable_data_ptr<uint8_t>();
    with_sizes(layout, code, to, in, [&](auto size, auto shared) {
      launch_walk(Walk(layout, size(), kPiece),
                  Encode<size(), shared(), scalar_t>{{layout, code},
                                                     StoredParams(stored),
                                                     rounding,
                                                     in,
                                                     to,
                                                     returned.mutable_data_ptr<float>()});
    });
  });
  return {codes, returned,
          stored.zero_point ? stored.zero_point->to(at::kChar)
                            : at::zeros_like(returned, returned.options().dtype(at::kChar))};
}

at::Tensor decode_cuda(
    const at::Tensor& codes, std::string_view text, const at::Tensor& scale,
    const at::Tensor& zero_point,
    c10::SymInt cols_symbol,  // NOLINT(performance-unnecessary-value-param): schema
    at::ScalarType dtype) {
  const int64_t cols = cols_symbol.expect_int();
  const Quantizer quantizer = check_decode(codes, text, scale, zero_point, cols, dtype);
  const c10::cuda::CUDAGuard on_device(codes.device());
  const BlockLayout layout =
      make_layout(codes.size(0), cols, quantizer.block[0], quantizer.block[1]);
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous(),
                   zeros = zero_point.contiguous();
  const at::Tensor y = at::empty({layout.rows, cols}, codes.options().dtype(dtype));
  QAT_DISPATCH_FLOAT(dtype, "decode", [&] {
    const auto* from = input.const_data_ptr<uint8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    with_sizes(layout, code, from, out, [&](auto size, auto shared) {
      launch_walk(Walk(layout, size(), kPiece),
                  Decode<size(), shared(), scalar_t>{{layout, code},
                                                     scales.const_data_ptr<float>(),
                                                     zeros.const_data_ptr<int8_t>(),
                                                     quantizer.levels().min,
                                                     from,
                                                     out});
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("encode", &encode_cuda);
  m.impl("decode", &decode_cuda);
}

}  // namespace qat
