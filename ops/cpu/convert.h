#pragma once

// Loops over contiguous elements: read, compute in float32, convert once.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "qat/ops/affine.h"
#include "qat/ops/cpu/vectorised.h"

namespace qat {

// Two neighbouring bfloat16 share a word: each is widened and narrowed in its own half of it,
// without the shuffles that a conversion of the vector would take.
typedef uint32_t Pair __attribute__((may_alias, aligned(2)));

template <typename... Types>
constexpr bool kInPairs =
    (std::is_same_v<Types, c10::BFloat16> && ...) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;

QAT_HOST_DEVICE float low_of(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
QAT_HOST_DEVICE float high_of(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

// A NaN as the macro NAN, whatever bits it had. What elements are computed with is made so, once a
// block, since arithmetic keeps the bits and upper_half() could not bear all of them.
QAT_HOST_DEVICE float canonical(float x) { return x == x ? x : NAN; }

// Nearest bfloat16, ties to even, in the upper half of the result. Of NaNs, those whose bits end in
// ones, such as a GPU's 0x7fffffff, would not stay one: see canonical().
QAT_HOST_DEVICE uint32_t upper_half(float y) {
  const uint32_t bits = std::bit_cast<uint32_t>(y);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// The nearest scalar_t, under the same condition.
template <typename scalar_t>
QAT_HOST_DEVICE scalar_t narrowed(float y) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>)
    return {static_cast<uint16_t>(upper_half(y) >> 16), c10::BFloat16::from_bits()};
  else
    return static_cast<scalar_t>(y);
}

// A float that is a scalar_t already, as one.
template <typename scalar_t>
QAT_HOST_DEVICE scalar_t exactly(float y) {
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    const auto upper = static_cast<uint16_t>(std::bit_cast<uint32_t>(y) >> 16);
    return {upper, c10::BFloat16::from_bits()};
  } else {
    return static_cast<scalar_t>(y);
  }
}

// out[i] = value(in[i], i / 2) for an even number of bfloat16; NaNs as for convert().
template <typename Value>
QAT_HOST_DEVICE void convert_pairs(const c10::BFloat16* __restrict in,
                                   c10::BFloat16* __restrict out, int64_t length,
                                   const Value& value) {
  const Pair* __restrict pairs = reinterpret_cast<const Pair*>(in);
  Pair* __restrict to = reinterpret_cast<Pair*>(out);
  for (int64_t i = 0; i < length / 2; ++i) {
    const float low = value(low_of(pairs[i]), i), high = value(high_of(pairs[i]), i);
    to[i] = upper_half(low) >> 16 | (upper_half(high) & 0xffff0000u);
  }
}

// out[i] = value(in[i]). Results of `value` that are NaN must come from canonical ones.
template <typename scalar_t, typename out_t, typename Length, typename Value>
QAT_HOST_DEVICE void convert(const scalar_t* __restrict in, out_t* __restrict out, Length length,
                             const Value& value) {
  int64_t done = 0;
  if constexpr (kInPairs<scalar_t, out_t>) {
    done = length / 2 * 2;
    convert_pairs(in, out, done, [&](float x, int64_t) QAT_BODY { return value(x); });
  }
  for (int64_t i = done; i < length; ++i)
    out[i] = narrowed<out_t>(value(static_cast<float>(in[i])));
}

// out[i] = value(a[i], b[i]), which must be a[i] or b[i] or 0: it is not rounded.
template <typename scalar_t, typename Length, typename Value>
QAT_HOST_DEVICE void select(const scalar_t* __restrict a, const scalar_t* __restrict b,
                            scalar_t* __restrict out, Length length, const Value& value) {
  int64_t done = 0;
  if constexpr (kInPairs<scalar_t>) {
    const Pair* __restrict pairs_a = reinterpret_cast<const Pair*>(a);
    const Pair* __restrict pairs_b = reinterpret_cast<const Pair*>(b);
    Pair* __restrict to = reinterpret_cast<Pair*>(out);
    for (int64_t i = 0; i < length / 2; ++i) {
      const float low = value(low_of(pairs_a[i]), low_of(pairs_b[i]));
      const float high = value(high_of(pairs_a[i]), high_of(pairs_b[i]));
      to[i] = std::bit_cast<uint32_t>(low) >> 16 | std::bit_cast<uint32_t>(high);
    }
    done = length / 2 * 2;
  }
  for (int64_t i = done; i < length; ++i)
    out[i] = exactly<scalar_t>(value(static_cast<float>(a[i]), static_cast<float>(b[i])));
}

// The same for a value(i, a[i], b[i]) that keeps something for each element.
template <typename scalar_t, typename Length, typename Value>
QAT_HOST_DEVICE void select_indexed(const scalar_t* __restrict a, const scalar_t* __restrict b,
                                    scalar_t* __restrict out, Length length, const Value& value) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    for (int64_t i = 0; i < length; ++i) out[i] = value(i, a[i], b[i]);
  } else {
    // Widened first and narrowed last: one loop over elements of two sizes does not vectorise well.
    constexpr int64_t kPiece = 128;
    alignas(64) float wide_a[kPiece], wide_b[kPiece], wide_out[kPiece];
    for (int64_t from = 0; from < length; from += kPiece) {
      const int64_t count = length - from < kPiece ? length - from : kPiece;
      for (int64_t i = 0; i < count; ++i) wide_a[i] = static_cast<float>(a[from + i]);
      for (int64_t i = 0; i < count; ++i) wide_b[i] = static_cast<float>(b[from + i]);
      for (int64_t i = 0; i < count; ++i) wide_out[i] = value(from + i, wide_a[i], wide_b[i]);
      for (int64_t i = 0; i < count; ++i) out[from + i] = exactly<scalar_t>(wide_out[i]);
    }
  }
}

}  // namespace qat
