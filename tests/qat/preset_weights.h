#pragma once

// A weight as training under a preset leaves it.

#include <ATen/ATen.h>

#include "qat/artifact.h"
#include "qat/ops/choose_qparams.h"
#include "qat/recipe/presets.h"

namespace qat {

inline QuantizedWeights preset_weights(const std::string& name, const QuantSpec& spec,
                                       const at::Tensor& weight) {
  const std::string text = quantizer_of(spec, spec.bits, Quantizer::Mode::minmax).text();
  const auto [scale, zero_point] = choose_qparams(weight, text, "minmax");
  OuterParameters outer;
  if (spec.scale.has_outer()) {
    const auto [outer_scale, outer_offset] = choose_outer_scales(weight, text);
    outer.scale = outer_scale;
    if (spec.has_offset()) outer.offset = outer_offset;
  }
  const at::ScalarType dtype = dtype_of(spec.scale.code).value_or(at::kBFloat16);
  return quantize_weights(name, spec, weight, scale, zero_point, dtype, outer);
}

}  // namespace qat
