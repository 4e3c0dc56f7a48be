#pragma once

// The input of the packed product, arranged as its tiles read it (panel_tile.h).

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "qat/ops/cpu/panel_tile.h"
#include "qat/ops/panels.h"

namespace qat {

// How many rows of x a tile takes: up to what the registers hold, and in between what wastes the
// least. Codes are widened anew for every tile, which costs as much as kWiden rows.
constexpr std::array<int, 6> kTileRows{1, 2, 3, 4, 6, 8};

inline int tile_rows(int64_t rows) {
  constexpr int kWiden = 3;
  const auto cost = [&](int size) { return (rows + size - 1) / size * (size + kWiden); };
  return *std::min_element(kTileRows.begin(), kTileRows.end(),
                           [&](int a, int b) { return cost(a) < cost(b); });
}

// Rows of x in tiles of equal size; rows and columns that are not there are 0.
class PanelInput {
 public:
  // `pairs`: bfloat16 in pairs of neighbouring columns rather than float32. `sums`: also the sum of
  // each group, for zero points.
  template <typename scalar_t>
  PanelInput(const scalar_t* x, int64_t rows, const PanelLayout& layout, bool pairs, bool sums)
      : rows_(rows),
        per_tile_(tile_rows(rows)),
        groups_(layout.groups()),
        tile_bytes_(layout.words() * layout.codes_per_word() * per_tile_ * (pairs ? 2 : 4)),
        x_(static_cast<size_t>(tiles() * tile_bytes_)),
        sums_(sums ? static_cast<size_t>(tiles() * groups_ * per_tile_) : 0) {
    at::parallel_for(0, tiles(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const scalar_t* from = x + tile * per_tile_ * layout.cols;
        pairs ? fill_pairs(from, tile, layout) : fill_floats(from, tile, layout);
        if (sums) fill_sums(from, tile, layout);
      }
    });
  }

  int per_tile() const { return per_tile_; }
  int64_t tiles() const { return (rows_ + per_tile_ - 1) / per_tile_; }
  int64_t tile_bytes() const { return tile_bytes_; }
  // Rows of x in a tile.
  int64_t rows_of(int64_t tile) const {
    return std::min<int64_t>(per_tile_, rows_ - tile * per_tile_);
  }
  TileInput tile(int64_t index) const {
    return {x_.data() + index * tile_bytes_,
            sums_.empty() ? nullptr : sums_.data() + index * groups_ * per_tile_};
  }

 private:
  // Calls visit(code, word) for the columns of one row of x from `x` on, word by word; words count
  // along the row.
  template <int kCodes, typename scalar_t, typename Visit>
  void for_each_word(const scalar_t* x, const PanelLayout& layout, const Visit& visit) const {
    int64_t word = 0;
    for (int64_t group = 0; group < groups_; ++group) {
      const scalar_t* from = x + group * layout.group_size;
      const scalar_t* end = from + layout.group_size;
      for (; from + kCodes <= end; from += kCodes) visit(from, kCodes, word++);
      if (from < end) visit(from, static_cast<int>(end - from), word++);
    }
  }

  template <typename scalar_t, typename Visit>
  void for_each_word(const scalar_t* x, const PanelLayout& layout, const Visit& visit) const {
    layout.bits == 4 ? for_each_word<8>(x, layout, visit) : for_each_word<4>(x, layout, visit);
  }

  template <typename scalar_t>
  void fill_floats(const scalar_t* x, int64_t tile, const PanelLayout& layout) {
    std::array<int64_t, 8> place{};  // of each code of a word
    for (int i = 0; i < layout.codes_per_word(); ++i)
      place[static_cast<size_t>(code_at(i, layout.bits))] = i * per_tile_;
    const int64_t size = layout.codes_per_word() * per_tile_;
    for (int64_t row = 0; row < rows_of(tile); ++row) {
      auto* to = reinterpret_cast<float*>(x_.data() + tile * tile_bytes_) + row;
      for_each_word(
          x + row * layout.cols, layout, [&](const scalar_t* from, int count, int64_t word) {
            for (int i = 0; i < count; ++i)
              to[word * size + place[static_cast<size_t>(i)]] = static_cast<float>(from[i]);
          });
    }
  }

  template <typename scalar_t>
  void fill_pairs(const scalar_t* x, int64_t tile, const PanelLayout& layout) {
    const int64_t size = layout.codes_per_word() * per_tile_;
    for (int64_t row = 0; row < rows_of(tile); ++row) {
      auto* to = reinterpret_cast<scalar_t*>(x_.data() + tile * tile_bytes_) + 2 * row;
      for_each_word(x + row * layout.cols, layout,
                    [&](const scalar_t* from, int count, int64_t word) {
                      for (int i = 0; i < count; ++i)
                        to[word * size + i / 2 * 2 * per_tile_ + i % 2] = from[i];
                    });
    }
  }

  template <typename scalar_t>
  void fill_sums(const scalar_t* x, int64_t tile, const PanelLayout& layout) {
    float* to = sums_.data() + tile * groups_ * per_tile_;
    for (int64_t row = 0; row < rows_of(tile); ++row)
      for (int64_t group = 0; group < groups_; ++group) {
        const scalar_t* from = x + row * layout.cols + group * layout.group_size;
        float sum = 0.0f;
        for (int64_t i = 0; i < layout.group_size; ++i) sum += static_cast<float>(from[i]);
        to[group * per_tile_ + row] = sum;
      }
  }

  int64_t rows_;
  int per_tile_;
  int64_t groups_;
  int64_t tile_bytes_;
  std::vector<std::byte> x_;
  std::vector<float> sums_;  // [tile][group][row]
};

}  // namespace qat
