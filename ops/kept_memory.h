#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "qat/ops/api.h"

namespace qat {

// Memory that is kept. The page faults of a large fresh result cost five to ten times the
// arithmetic of a fake quantization, and a quantized weight is needed for one matrix product only.
// On a CPU these tensors therefore come from a list of buffers, to which they return when their
// last reference goes: the layers of a model take turns on one buffer of the largest weight. On
// other devices torch's own caching allocator does as much.
//
// A brief result may lie in a buffer much larger than itself; a tight one, which stays, may not.
enum class Fit { brief, tight };
QAT_API at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                              Fit fit = Fit::brief);
at::Tensor kept_empty_symint(c10::SymIntArrayRef sizes, const at::TensorOptions& options,
                             Fit fit = Fit::brief);

// Contiguous, with the sizes of `like`.
QAT_API at::Tensor kept_empty_like(const at::Tensor& like, at::ScalarType dtype);
inline at::Tensor kept_empty_like(const at::Tensor& like) {
  return kept_empty_like(like, like.scalar_type());
}

// Bytes in buffers, in use or not, and the most there have been since the last release.
QAT_API int64_t kept_bytes();
QAT_API int64_t most_kept_bytes();

// Gives the buffers that nothing uses back to the system, and, under glibc, what the allocator
// keeps of memory that was freed.
QAT_API void release_kept_memory();

// Gives back the buffers that nothing uses but the largest: after a part of a model that needs
// several at once, where what follows takes turns on one.
QAT_API void release_all_but_the_largest();

}  // namespace qat
