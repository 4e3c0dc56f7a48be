#pragma once

// The smallest and the largest finite element of segments, found on the bits of the numbers: the
// bits of floats of one sign are ordered as the floats are, so 32 halves fit a comparison that
// would take 16 once converted, and an element that is not finite shows by its exponent.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "qat/ops/cpu/tiles.h"
#include "qat/ops/qparams.h"

namespace qat {

struct Span {
  float low;
  float high;
};

QAT_HOST_DEVICE Span empty_span() { return {FLT_MAX, -FLT_MAX}; }

QAT_HOST_DEVICE Span join(Span a, Span b) {
  return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

template <typename scalar_t>
struct FloatBits {
  using Signed = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int16_t>;
  typedef Signed Aliased __attribute__((may_alias));
  static constexpr Signed kMagnitude = std::numeric_limits<Signed>::max();
  // The bits of infinity: what is not finite has at least this magnitude.
  static constexpr Signed kInfinity = std::is_same_v<scalar_t, float>           ? 0x7f800000
                                      : std::is_same_v<scalar_t, c10::BFloat16> ? 0x7f80
                                                                                : 0x7c00;

  // A whole number that is ordered as the floats are; its own inverse.
  QAT_HOST_DEVICE static Signed ordered(Signed bits) {
    return static_cast<Signed>(bits ^ ((bits >> (8 * sizeof(Signed) - 1)) & kMagnitude));
  }
  QAT_HOST_DEVICE static float value(Signed bits) {
    return static_cast<float>(std::bit_cast<scalar_t>(bits));
  }
};

template <typename scalar_t>
QAT_HOST_DEVICE const typename FloatBits<scalar_t>::Aliased* bits_of(const scalar_t* x) {
  return reinterpret_cast<const typename FloatBits<scalar_t>::Aliased*>(x);
}

// Spans of the segments of a tile, and whether all their elements are finite.
struct TileSpan {
  float low[kTile] = {};
  float high[kTile] = {};
  bool finite = true;
};

// The span of one segment that has elements which are not finite; zeros when it has no others.
template <typename scalar_t>
Span span_of_finite(const scalar_t* x, int64_t length) {
  Span span = empty_span();
  for (int64_t i = 0; i < length; ++i) {
    const float value = static_cast<float>(x[i]);
    if (is_finite(value)) span = join(span, {value, value});
  }
  return span;
}

template <typename scalar_t>
TileSpan span_of_finite(const scalar_t* x, const Tile& tile) {
  TileSpan spans;
  spans.finite = false;
  for (int k = 0; k < tile.count; ++k) {
    const Span span = span_of_finite(x + tile.at(k), tile.length(k));
    if (span.low <= span.high) spans.low[k] = span.low, spans.high[k] = span.high;
  }
  return spans;
}

// The bits of the largest magnitude of a segment.
template <typename scalar_t, typename Length>
QAT_HOST_DEVICE auto largest_magnitude(const scalar_t* x, Length length) {
  using Bits = FloatBits<scalar_t>;
  typename Bits::Signed top = 0;
  for (int64_t i = 0; i < length; ++i) {
    const auto magnitude = static_cast<typename Bits::Signed>(bits_of(x)[i] & Bits::kMagnitude);
    top = magnitude > top ? magnitude : top;
  }
  return top;
}
// Of a short one in sixteen bytes, then in the halves of eight, which shifts bring together at less
// cost than shuffles.
template <typename scalar_t, int64_t kLength>
  requires(kLength * sizeof(scalar_t) <= 64)
QAT_HOST_DEVICE auto largest_magnitude(const scalar_t* x,
                                       std::integral_constant<int64_t, kLength>) {
  using Signed = typename FloatBits<scalar_t>::Signed;
  typedef Signed Numbers __attribute__((vector_size(16)));
  typedef uint64_t Words __attribute__((vector_size(16)));
  constexpr int kBits = 8 * sizeof(Signed);
  const auto larger = [](Numbers a, Numbers b) QAT_BODY { return a > b ? a : b; };
  Numbers most = {};
  for (int64_t i = 0; i < kLength; i += 128 / kBits) {
    Numbers next;
    std::memcpy(&next, x + i, sizeof(next));
    most = larger(most, next & FloatBits<scalar_t>::kMagnitude);
  }
  for (int by = 32; by >= kBits; by /= 2)
    most = larger(most, reinterpret_cast<Numbers>(reinterpret_cast<Words>(most) >> by));
  const Signed first = most[0], second = most[64 / kBits];
  return first > second ? first : second;
}

// The largest magnitudes, as `high`: all that the symmetric grids without a sign need.
template <typename scalar_t>
QAT_HOST_DEVICE TileSpan magnitudes_of(const scalar_t* x, const Tile& tile) {
  using Bits = FloatBits<scalar_t>;
  using Signed = typename Bits::Signed;
  Signed most[kTile] = {};
  for_each_segment(tile, [&](int k, auto length)
                             QAT_BODY { most[k] = largest_magnitude(x + tile.at(k), length); });
  TileSpan spans;
  bool finite = true;
  for_each_lane(tile.count, [&](int k) QAT_BODY { finite &= most[k] < Bits::kInfinity; });
  if (!finite) return span_of_finite(x, tile);
  for_each_lane(tile.count, [&](int k) QAT_BODY { spans.high[k] = Bits::value(most[k]); });
  return spans;
}

// The smallest and largest elements.
template <typename scalar_t>
QAT_HOST_DEVICE TileSpan ends_of(const scalar_t* x, const Tile& tile) {
  using Bits = FloatBits<scalar_t>;
  using Signed = typename Bits::Signed;
  // The infinities, in order: what is not finite lies at or beyond them.
  constexpr Signed kAbove = Bits::kInfinity;
  constexpr Signed kBelow = static_cast<Signed>(-Bits::kInfinity - 1);
  Signed least[kTile] = {}, most[kTile] = {};
  for_each_segment(tile, [&](int k, auto length) QAT_BODY {
    const auto* bits = bits_of(x + tile.at(k));
    Signed low = kAbove, high = kBelow;
    for (int64_t i = 0; i < length; ++i) {
      const Signed place = Bits::ordered(bits[i]);
      low = place < low ? place : low;
      high = place > high ? place : high;
    }
    least[k] = low;
    most[k] = high;
  });
  TileSpan spans;
  bool finite = true;
  for_each_lane(tile.count,
                [&](int k) QAT_BODY { finite &= (least[k] > kBelow) & (most[k] < kAbove); });
  if (!finite) return span_of_finite(x, tile);
  for_each_lane(tile.count, [&](int k) QAT_BODY {
    spans.low[k] = Bits::value(Bits::ordered(least[k]));
    spans.high[k] = Bits::value(Bits::ordered(most[k]));
  });
  return spans;
}

// What `grid` needs to know of a tile.
template <typename scalar_t>
QAT_HOST_DEVICE TileSpan span_of(Grid grid, const scalar_t* x, const Tile& tile) {
  const bool ends = needs_ends(grid);
  return ends ? ends_of(x, tile) : magnitudes_of(x, tile);
}

}  // namespace qat
