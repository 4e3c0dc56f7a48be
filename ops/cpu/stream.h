#pragma once

// Writing a result that is larger than the cache. An ordinary store first reads the line that it
// fills; a streaming store does not, and leaves the cache to those who need it. Kernels therefore
// compute into a small array and copy it out from there.

#include <cstdint>
#include <cstring>

#include "qat/ops/affine.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace qat {

// Results of more bytes are streamed: the last-level cache of a small server processor. What is
// smaller is read again, by a matrix product, before it leaves the cache.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

// Elements that are computed before they are copied out: a tile of groups of 128.
constexpr int64_t kStage = 2048;

inline bool streams(int64_t bytes) { return bytes > kStreamBytes; }

// Copies `bytes` past the cache. A thread calls end_stream() before others read them.
QAT_HOST_DEVICE void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__x86_64__)
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0 && bytes % 64 == 0) {
    auto* out = static_cast<__m128i*>(to);
    const auto* in = static_cast<const __m128i*>(from);
    for (int64_t i = 0; i < bytes / 16; i += 4) {
      _mm_stream_si128(out + i, _mm_load_si128(in + i));
      _mm_stream_si128(out + i + 1, _mm_load_si128(in + i + 1));
      _mm_stream_si128(out + i + 2, _mm_load_si128(in + i + 2));
      _mm_stream_si128(out + i + 3, _mm_load_si128(in + i + 3));
    }
    return;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

QAT_HOST_DEVICE void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace qat
