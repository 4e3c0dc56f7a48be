#pragma once

// Runs a loop compiled for the widest instructions that the processor has, so that one wheel serves
// every x86-64. The body must be a lambda marked QAT_BODY: being always inlined, it is compiled
// anew inside each of the functions below. The results do not depend on which one runs, since
// nothing is contracted or re-associated.

#include <utility>

#define QAT_BODY __attribute__((always_inline))

namespace qat {

#if defined(__x86_64__) && defined(__GNUC__)

enum class Capability { baseline, avx2, avx512 };

inline Capability capability() {
  static const Capability found = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Capability::avx512;
    return __builtin_cpu_supports("avx2") ? Capability::avx2 : Capability::baseline;
  }();
  return found;
}

template <typename Body>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void
run_avx512(Body&& body) {
  body();
}

template <typename Body>
__attribute__((target("avx2"))) void run_avx2(Body&& body) {
  body();
}

template <typename Body>
void vectorised(Body&& body) {
  switch (capability()) {
    case Capability::avx512:
      return run_avx512(std::forward<Body>(body));
    case Capability::avx2:
      return run_avx2(std::forward<Body>(body));
    case Capability::baseline:
      return body();
  }
}

#else

template <typename Body>
void vectorised(Body&& body) {
  body();
}

#endif

}  // namespace qat
