#pragma once

// The innermost loop of the packed product: some rows of x with some rows of a weight in panels
// (panels.h), the codes widened to float32 in registers. Written once, in vectors of the compiler's
// own, for any width of the processor's. To be compiled with contraction, so that a product and a
// sum are one instruction: what is exact here are the codes, not the sums.

#include <cstdint>
#include <cstring>

#include "qat/ops/affine.h"
#include "qat/ops/cpu/vectorised.h"
#include "qat/ops/panels.h"

namespace qat {

template <int kLanes>
struct Lanes {
  typedef float Floats __attribute__((vector_size(kLanes * 4)));
  typedef int32_t Words __attribute__((vector_size(kLanes * 4)));
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
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

// Words that lie so far ahead are fetched beforehand: a weight is read once, faster than the
// processor by itself looks ahead.
constexpr int64_t kAhead = 32 * PanelLayout::kRows;

// Weight rows whose panels are multiplied together: enough vectors to keep the multipliers busy.
constexpr int64_t kBlockPanels = 4;
constexpr int64_t kBlockRows = kBlockPanels * PanelLayout::kRows;

// What the tiles of one block of weight rows share. In place of a panel that is not there stands
// another, whose results nobody reads.
struct PanelBlock {
  const int32_t* words[kBlockPanels];      // of each panel
  const void* scale[kBlockPanels];         // [group][16], float32 or bfloat16
  const int8_t* zero_point[kBlockPanels];  // the same, or null
  bool half_scales;                        // bfloat16
  int64_t groups;
  int64_t words_per_group;

  // Scales and zero points of a group for the weight rows from `row` on.
  template <int kLanes>
  QAT_BODY inline void load_scale(int64_t row, int64_t group,
                                  typename Lanes<kLanes>::Floats& to) const {
    const int64_t at = group * PanelLayout::kRows + row % PanelLayout::kRows;
    const void* from = scale[row / PanelLayout::kRows];
    if (!half_scales) return load(static_cast<const float*>(from) + at, to);
    typename Lanes<kLanes>::Halves halves;
    load(static_cast<const uint16_t*>(from) + at, halves);
    const auto wide = __builtin_convertvector(halves, typename Lanes<kLanes>::Words) << 16;
    std::memcpy(&to, &wide, sizeof(to));
  }
  template <int kLanes>
  QAT_BODY inline void load_zero_point(int64_t row, int64_t group,
                                       typename Lanes<kLanes>::Floats& to) const {
    typename Lanes<kLanes>::Bytes bytes;
    load(zero_point[row / PanelLayout::kRows] + group * PanelLayout::kRows +
             row % PanelLayout::kRows,
         bytes);
    to = __builtin_convertvector(__builtin_convertvector(bytes, typename Lanes<kLanes>::Words),
                                 typename Lanes<kLanes>::Floats);
  }
};

// The next words of `kVectors` vectors of weight rows, from the streams that `at` points into.
template <int kVectors, typename vector_t>
QAT_BODY inline void next_words(const int32_t* (&at)[kVectors], vector_t (&words)[kVectors]) {
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    load(at[v], words[v]);
    __builtin_prefetch(at[v] + kAhead);
    at[v] += PanelLayout::kRows;
  }
}

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
// weight rows. `total` has kBlockRows weight rows.
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
    at[v] = block.words[row / PanelLayout::kRows] + row % PanelLayout::kRows;
  }
  for (int64_t group = 0; group < block.groups; ++group) {
    Floats sum[kVectors][kRows] = {};
    for (int64_t word = 0; word < block.words_per_group; ++word) {
      Words words[kVectors];
      next_words(at, words);
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
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Floats by, offset;
      block.load_scale<kLanes>(first + v * kLanes, group, by);
      if (input.sum) block.load_zero_point<kLanes>(first + v * kLanes, group, offset);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        if (input.sum) sum[v][m] -= offset * input.sum[group * kRows + m];
        float* to = total + m * kBlockRows + first + v * kLanes;
        Floats before = {};
        if (group > 0) load(to, before);
        store(to, before + sum[v][m] * by);
      }
    }
  }
}

// The weight of a block as it is, [row][column], in the order in which a reader of the checkpoint
// computes it; `panels` of it are there.
inline void dequantize_block(const PanelBlock& block, int64_t panels, const PanelLayout& layout,
                             float* to) {
  const int64_t per_word = layout.codes_per_word();
  for (int64_t row = 0; row < panels * PanelLayout::kRows; ++row)
    for (int64_t group = 0; group < block.groups; ++group) {
      const int32_t* words = block.words[row / PanelLayout::kRows] + row % PanelLayout::kRows +
                             group * block.words_per_group * PanelLayout::kRows;
      Lanes<1>::Floats scale, zero = {};
      block.load_scale<1>(row, group, scale);
      if (block.zero_point[0]) block.load_zero_point<1>(row, group, zero);
      float* out = to + row * layout.cols + group * layout.group_size;
      for (int64_t i = 0; i < layout.group_size; ++i) {
        const auto word = static_cast<uint32_t>(words[i / per_word * PanelLayout::kRows]);
        const int top = 32 - layout.bits,
                  begin = bit_of(static_cast<int>(i % per_word), layout.bits);
        const int code = static_cast<int32_t>(word << (top - begin)) >> top;
        out[i] = affine::dequantize(static_cast<float>(code), scale[0], zero[0]);
      }
    }
}

}  // namespace qat
