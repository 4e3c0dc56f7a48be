#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "qat/ops/api.h"

namespace qat::solvers {

// An orthogonal matrix float64 [size, size] whose entries are all ±1/√size, its rows given random
// signs by `seed`: a randomised Hadamard matrix (QuaRot, arXiv 2404.00456; numerics.md (22)). Made
// of Sylvester's doubling and Paley's two constructions; where those reach no matrix of this size,
// the orthogonal factor of a random one, so that any size has a rotation. Throws
// std::invalid_argument for a size below 1.
QAT_API at::Tensor random_rotation(int64_t size, uint64_t seed);

// Whether random_rotation(size) is a Hadamard matrix.
QAT_API bool has_hadamard(int64_t size);

}  // namespace qat::solvers
