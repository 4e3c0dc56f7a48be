#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "qat/ops/api.h"
#include "qat/spec.h"

namespace qat {

// Outer scales of a weight's scales and of its offsets, float32 [outer_rows, outer_cols]; none where
// its spec has none.
struct QAT_API OuterParameters {
  std::optional<at::Tensor> scale;
  std::optional<at::Tensor> offset;
};

// What a weight [out, in] at `bits` needs by the ranges of its blocks, numerics.md (7d); those that are
// given are kept.
QAT_API OuterParameters outer_parameters(const at::Tensor& weight, const QuantSpec& spec, int bits,
                                         OuterParameters given = {});

}  // namespace qat
