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

// An element that is not finite marks its block, as others may at the same time.
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
    if (!finite) atomicExch(scale + share.block, NAN);
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

void encode_blocks(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes,
                   const at::Tensor& scale) {
  const CodeLayout code = code_layout(blocks.layout, blocks.quantizer.bits);
  const Rounding<WholeLevels, Shift::level> rounding{whole_levels(blocks.quantizer.levels())};
  QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "encode", [&] {
    const scalar_t* in = blocks.x.const_data_ptr<scalar_t>();
    auto* to = codes.mutable_data_ptr<uint8_t>();
    auto* scale_at = scale.mutable_data_ptr<float>();
    with_sizes(blocks.layout, code, to, in, [&](auto size, auto shared) {
      launch_walk(Walk(blocks.layout, size(), kPiece),
                  Encode<size(), shared(), scalar_t>{
                      {blocks.layout, code}, StoredParams(stored), rounding, in, to, scale_at});
    });
  });
}

void decode_blocks(const at::Tensor& codes, const BlockLayout& layout, const Quantizer& quantizer,
                   const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& y) {
  const CodeLayout code = code_layout(layout, quantizer.bits);
  const float lowest = quantizer.levels().min;
  QAT_DISPATCH_FLOAT(y.scalar_type(), "decode", [&] {
    const auto* from = codes.const_data_ptr<uint8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const auto* scale_at = scale.const_data_ptr<float>();
    const auto* zero_at = zero_point.const_data_ptr<int8_t>();
    with_sizes(layout, code, from, out, [&](auto size, auto shared) {
      launch_walk(
          Walk(layout, size(), kPiece),
          Decode<size(), shared(), scalar_t>{{layout, code}, scale_at, zero_at, lowest, from, out});
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_encode(m, {nullptr, &encode_blocks, &decode_blocks}); }

}  // namespace qat
