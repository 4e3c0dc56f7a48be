#pragma once

// Runs a loop compiled for the widest instructions that the processor has, so that one wheel serves
// every x86-64. The body must be a lambda marked QAT_BODY: being always inlined, it is compiled
// anew inside each of the functions below. The results do not depend on which one runs, since
// nothing is contracted or re-associated.

#include <utility>

#define QAT_BODY __attribute__((always_inline))

namespace qat {

enum class Capability { portable, avx2, avx512 };

// What the kernels use: the widest that the processor has, or what the environment variable
// TORCHQAT_CPU_CAPABILITY asks for (avx512, avx2 or portable; it is read once). Raises ValueError
// for another word and for instructions that the processor lacks.
Capability capability();
const char* name_of(Capability capability);

#if defined(__x86_64__) && defined(__GNUC__)

#define QAT_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,f16c"
#if defined(__clang__)  // which takes the width of vectors from elsewhere
#define QAT_AVX512_TARGET QAT_AVX512
#else
#define QAT_AVX512_TARGET QAT_AVX512 ",prefer-vector-width=512"
#endif

template <typename Body>
__attribute__((target(QAT_AVX512_TARGET))) void run_avx512(Body&& body) {
  body();
}

template <typename Body>
__attribute__((target("avx2,f16c"))) void run_avx2(Body&& body) {
  body();
}

template <typename Body>
void vectorised(Body&& body) {
  switch (capability()) {
    case Capability::avx512:
      return run_avx512(std::forward<Body>(body));
    case Capability::avx2:
      return run_avx2(std::forward<Body>(body));
    case Capability::portable:
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
