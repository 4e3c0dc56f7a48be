#pragma once

#include <cstdint>
#include <cstring>

#include "qat/ops/affine.h"

namespace qat {

// A sum in one fixed order: element i joins lane i % 32, then the upper half of the lanes is added
// to the lower until one is left. The same bits at any vector width, for any number of threads, and
// on a GPU, whose warps have 32 lanes. The lanes are a vector of the compiler's, so that they stay
// in registers.
template <typename T>
class LaneSum {
 public:
  QAT_HOST_DEVICE void clear() { lanes_ = Lanes<32>{}; }

  template <typename Length>
  QAT_HOST_DEVICE void add(const T* terms, Length length) {
    int64_t i = 0;
    for (; i + 32 <= length; i += 32) {
      Lanes<32> next;
      std::memcpy(&next, terms + i, sizeof(next));
      lanes_ += next;
    }
    if (i == length) return;
    Lanes<32> rest{};
    for (int lane = 0; i < length; ++i, ++lane) rest[lane] = terms[i];
    lanes_ += rest;
  }

  QAT_HOST_DEVICE T total() const {
    const Lanes<16> sixteen = __builtin_shufflevector(lanes_, lanes_, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                      10, 11, 12, 13, 14, 15) +
                              __builtin_shufflevector(lanes_, lanes_, 16, 17, 18, 19, 20, 21, 22,
                                                      23, 24, 25, 26, 27, 28, 29, 30, 31);
    const Lanes<8> eight = __builtin_shufflevector(sixteen, sixteen, 0, 1, 2, 3, 4, 5, 6, 7) +
                           __builtin_shufflevector(sixteen, sixteen, 8, 9, 10, 11, 12, 13, 14, 15);
    const Lanes<4> four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                          __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }

 private:
  template <int kCount>
  using Lanes __attribute__((vector_size(kCount * sizeof(T)))) = T;

  Lanes<32> lanes_{};
};

}  // namespace qat
