#pragma once

// The innermost loop of the packed product: some rows of x with some rows of a weight in panels
// (panels.h), the codes widened to float32 in registers. Written once, in vectors of the compiler's
// own, for any width of the processor's. To be compiled with contraction, so that a product and a
// sum are one instruction: what is exact here are the codes, not the sums.

#include <cstdint>
#include <cstring>

#include "ops/affine.h"
#include "ops/cpu/vectorised.h"
#include "ops/panels.h"

namespace qat {

template <int kLanes>
struct Lanes {
  typedef float Floats __attribute__((vector_size(kLanes * 4)));
  typedef int32_t Words __attribute__((vector_size(kLanes * 4)));
};

// From and to memory that is aligned to no more than its elements.
template <typename vector_t, typename element_t>
QAT_BODY inline void load(const element_t* from, vector_t& to) {
  std::memcpy(&to, from, sizeof(vector_t));
}
template <typename vector_t, typename element_t>
QAT_BODY inline void store(element_t* to, const vector_t& from) {
  std::memcpy(to, &from, sizeof(vector_t));
}

// What the tiles of one block of weight rows share. Everything begins at the block's first row.
struct PanelBlock {
  const int32_t* words;     // panels of the block
  int64_t panel_words;      // from one panel to the next
  const float* scale;       // [groups][block rows]
  const float* zero_point;  // the same, or null
  int64_t block_rows;       // a multiple of 16
  int64_t panels;           // that are there
  int64_t groups;
  int64_t words_per_group;
};

// Rows of x as a tile reads them.
struct TileInput {
  const void* x;     // float32 [word][code of the word][row of the tile], or bfloat16 in pairs
  const float* sum;  // [group][row of the tile], for zero points; or null
};

// In which order a float32 tile visits the codes of a word: by their bits.
constexpr int code_at(int place, int bits) {
  return bits == 8 ? place : place < 4 ? 2 * place : 2 * (place - 4) + 1;
}

// total[row of x][weight row from `first` on] = x ŵᵀ for kRows rows of x and kVectors * kLanes
// weight rows. `total` has `block.block_rows` weight rows.
template <int kLanes, int kRows, int kVectors, int kBits>
QAT_BODY inline void float_tile(const PanelBlock& block, int64_t first, const TileInput& input,
                                float* total) {
  using Floats = typename Lanes<kLanes>::Floats;
  using Words = typename Lanes<kLanes>::Words;
  constexpr int kCodes = 32 / kBits;
  const float* x = static_cast<const float*>(input.x);
  const int32_t* at[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t row = first + v * kLanes;
    at[v] = block.words + row / PanelLayout::kRows * block.panel_words + row % PanelLayout::kRows;
  }
  for (int64_t group = 0; group < block.groups; ++group) {
    Floats sum[kVectors][kRows] = {};
    for (int64_t word = 0; word < block.words_per_group; ++word) {
      Words words[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        load(at[v], words[v]);
        at[v] += PanelLayout::kRows;
      }
#pragma GCC unroll 8
      for (int place = 0; place < kCodes; ++place) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const Words code = (words[v] << (32 - kBits - kBits * place)) >> (32 - kBits);
          const Floats value = __builtin_convertvector(code, Floats);
#pragma GCC unroll 16
          for (int m = 0; m < kRows; ++m) sum[v][m] += value * x[m];
        }
        x += kRows;
      }
    }
    const float* scale = block.scale + group * block.block_rows + first;
    const float* zero = block.zero_point + group * block.block_rows + first;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Floats by, offset;
      load(scale + v * kLanes, by);
      if (input.sum) load(zero + v * kLanes, offset);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        if (input.sum) sum[v][m] -= offset * input.sum[group * kRows + m];
        float* to = total + m * block.block_rows + first + v * kLanes;
        Floats before = {};
        if (group > 0) load(to, before);
        store(to, before + sum[v][m] * by);
      }
    }
  }
}

// The weight of a block as it is, [row][column], in the order in which a reader of the checkpoint
// computes it.
template <typename to_t>
void dequantize_block(const PanelBlock& block, const PanelLayout& layout, to_t* to) {
  for (int64_t row = 0; row < block.panels * PanelLayout::kRows; ++row)
    for (int64_t group = 0; group < block.groups; ++group) {
      const int32_t* word = block.words + row / PanelLayout::kRows * block.panel_words +
                            group * block.words_per_group * PanelLayout::kRows +
                            row % PanelLayout::kRows;
      const float scale = block.scale[group * block.block_rows + row];
      const float zero = block.zero_point ? block.zero_point[group * block.block_rows + row] : 0.0f;
      const int64_t begin = group * layout.group_size;
      for (int64_t i = 0; i < layout.group_size; ++i) {
        const auto per_word = layout.codes_per_word();
        const auto bits = static_cast<uint32_t>(word[i / per_word * PanelLayout::kRows]);
        const int begins = bit_of(static_cast<int>(i % per_word), layout.bits);
        const int code =
            static_cast<int32_t>(bits << (32 - layout.bits - begins)) >> (32 - layout.bits);
        to[row * layout.cols + begin + i] =
            static_cast<to_t>(affine::dequantize(static_cast<float>(code), scale, zero));
      }
    }
}

}  // namespace qat
