#pragma once

// The tile of panel_tile.h on processors that multiply pairs of bfloat16 (AVX512_BF16): codes are
// exact in bfloat16, and so is x, which is given in it.

#include "qat/ops/cpu/panel_tile.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define QAT_BF16_TILE

#include <immintrin.h>

namespace qat {

#define QAT_BF16_TARGET __attribute__((target(QAT_AVX512 ",avx512bf16")))
#define QAT_BF16_BODY __attribute__((target(QAT_AVX512 ",avx512bf16"), always_inline))

// Codes 2 * pair and 2 * pair + 1 of each word, as bfloat16.
template <int kBits>
QAT_BF16_BODY inline __m512i code_pair(__m512i words, int pair, __m512i table) {
  if constexpr (kBits == 4)  // the table has each value twice, so the bit above does not matter
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(words, static_cast<unsigned>(4 * pair)),
                                    table);
  const auto code = [&](int i) QAT_BF16_BODY {
    const auto up = static_cast<unsigned>(24 - 8 * i);
    return _mm512_castps_si512(
        _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, up), 24)));
  };
  return _mm512_or_si512(_mm512_srli_epi32(code(2 * pair), 16), code(2 * pair + 1));
}

// Bfloat16 values of the codes 0 to 15 in two's complement of 4 bits, twice.
QAT_BF16_BODY inline __m512i code_table() {
  alignas(64) uint16_t table[32];
  for (int i = 0; i < 32; ++i) {
    const float value = static_cast<float>(i % 16 < 8 ? i % 16 : i % 16 - 16);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    table[i] = static_cast<uint16_t>(bits >> 16);
  }
  return _mm512_load_si512(table);
}

// As float_tile, for 16 lanes; input.x is [pair of columns][row of the tile].
template <int kRows, int kVectors, int kBits>
QAT_BF16_BODY inline void bf16_tile(const PanelBlock& block, int64_t first, const TileInput& input,
                                    float* total) {
  constexpr int kPairs = 16 / kBits;
  const auto* x = static_cast<const int32_t*>(input.x);
  const __m512i table = code_table();
  const int32_t* at[kVectors];
  for (int v = 0; v < kVectors; ++v) at[v] = block.words[first / PanelLayout::kRows + v];
  for (int64_t group = 0; group < block.groups; ++group) {
    __m512 sum[kVectors][kRows];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) sum[v][m] = _mm512_setzero_ps();
    for (int64_t word = 0; word < block.words_per_group; ++word) {
      __m512i words[kVectors];
      next_words(at, words);
#pragma GCC unroll 8
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const __m512i codes = code_pair<kBits>(words[v], pair, table);
#pragma GCC unroll 16
          for (int m = 0; m < kRows; ++m)
            sum[v][m] =
                _mm512_dpbf16_ps(sum[v][m], (__m512bh)codes, (__m512bh)_mm512_set1_epi32(x[m]));
        }
        x += kRows;
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Lanes<16>::Floats by, offset;
      block.load_scale<16>(first + v * 16, group, by);
      if (input.sum) block.load_zero_point<16>(first + v * 16, group, offset);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        if (input.sum)
          sum[v][m] = _mm512_fnmadd_ps((__m512)offset, _mm512_set1_ps(input.sum[group * kRows + m]),
                                       sum[v][m]);
        float* to = total + m * kBlockRows + first + v * 16;
        _mm512_storeu_ps(to, group == 0
                                 ? _mm512_mul_ps(sum[v][m], (__m512)by)
                                 : _mm512_fmadd_ps(sum[v][m], (__m512)by, _mm512_loadu_ps(to)));
      }
    }
  }
}

}  // namespace qat

#endif
