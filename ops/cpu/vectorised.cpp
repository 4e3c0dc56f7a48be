#include "qat/ops/cpu/vectorised.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace qat {
namespace {

Capability widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Capability::avx512;
#if defined(__clang__)  // does not know f16c, which every processor with AVX2 has
  if (__builtin_cpu_supports("avx2")) return Capability::avx2;
#else
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return Capability::avx2;
#endif
#endif
  return Capability::portable;
}

Capability chosen() {
  const Capability most = widest();
  const char* asked = std::getenv("TORCHQAT_CPU_CAPABILITY");
  if (!asked || !*asked) return most;
  for (const Capability one : {Capability::portable, Capability::avx2, Capability::avx512})
    if (std::string_view(asked) == name_of(one) && one <= most) return one;
  TORCH_CHECK_VALUE(false, "TORCHQAT_CPU_CAPABILITY must be portable, avx2 or avx512, and this ",
                    "processor has ", name_of(most), " at most, but is ", asked, ".");
}

}  // namespace

Capability capability() {
  static const Capability found = chosen();
  return found;
}

const char* name_of(Capability capability) {
  switch (capability) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    case Capability::portable:
      return "portable";
  }
  return "";
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def("cpu_capability() -> str", [] { return std::string(name_of(capability())); });
}

}  // namespace qat
