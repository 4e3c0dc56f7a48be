#include "qat/solvers/full_precision.h"

#include <ATen/Context.h>

#include <mutex>

namespace qat::solvers {
namespace {

using at::Float32Backend;
using at::Float32Precision;

Float32Precision precision_of(Float32Backend backend) {
  return at::globalContext().float32Precision(backend, at::Float32Op::MATMUL);
}

void set_precision(Float32Backend backend, Float32Precision precision) {
  at::globalContext().setFloat32Precision(backend, at::Float32Op::MATMUL, precision);
}

bool is_reduced(Float32Precision precision) {
  return precision == Float32Precision::TF32 || precision == Float32Precision::BF16;
}

// What the process had before the first of the guards that live.
struct Before {
  std::mutex mutex;
  int guards = 0;
  bool changed = false;
  const char* word = nullptr;  // of torch.set_float32_matmul_precision
  Float32Precision cuda = Float32Precision::NONE, mkldnn = Float32Precision::NONE;
};

Before& before() {
  static Before one;
  return one;
}

// LibTorch keeps the word of the older interface beside the settings of the newer, and wants both
// to agree where it looks at both; it refuses to tell the word when they do not.
const char* word_of_process() {
  try {
    switch (at::globalContext().float32MatmulPrecision()) {
      case at::Float32MatmulPrecision::HIGHEST:
        return "highest";
      case at::Float32MatmulPrecision::HIGH:
        return "high";
      case at::Float32MatmulPrecision::MEDIUM:
        return "medium";
    }
  } catch (const c10::Error&) {
  }
  return "highest";  // as it begins, where only the newer interface was used
}

}  // namespace

FullPrecision::FullPrecision() : no_autocast_(c10::autocast_dispatch_keyset) {
  Before& saved = before();
  const std::lock_guard lock(saved.mutex);
  if (saved.guards++ > 0) return;
  saved.cuda = precision_of(Float32Backend::CUDA);
  saved.mkldnn = precision_of(Float32Backend::MKLDNN);
  saved.changed = is_reduced(saved.cuda) || is_reduced(saved.mkldnn);
  if (!saved.changed) return;
  saved.word = word_of_process();
  at::globalContext().setFloat32MatmulPrecision("highest");
}

FullPrecision::~FullPrecision() {
  Before& saved = before();
  const std::lock_guard lock(saved.mutex);
  if (--saved.guards > 0 || !saved.changed) return;
  at::globalContext().setFloat32MatmulPrecision(saved.word);
  set_precision(Float32Backend::CUDA, saved.cuda);
  set_precision(Float32Backend::MKLDNN, saved.mkldnn);
}

}  // namespace qat::solvers
