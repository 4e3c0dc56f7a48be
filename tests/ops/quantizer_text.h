#pragma once

// Shorthands of the tests: a quantizer's text from its parts, and the rounded tensor alone.

#include <string>

#include "qat/ops/fake_quantize.h"

namespace qat {

inline std::string text(const char* mode, int64_t bits, std::string_view grid,
                        at::IntArrayRef block, at::ScalarType scale = at::kFloat,
                        double gradient_scale = 1.0) {
  Quantizer quantizer = Quantizer::parse(std::string(mode) + " int4 narrow 1x1 float32");
  quantizer.grid = parse_grid("test", grid);
  quantizer.bits = is_named(quantizer.grid) ? named_bits(quantizer.grid) : static_cast<int>(bits);
  quantizer.block = {block[0], block[1]};
  quantizer.scale_code = scale_code_of(scale);
  quantizer.gradient_scale = gradient_scale;
  return quantizer.text();
}

inline at::Tensor rounded(const at::Tensor& x, std::string_view quantizer,
                          const std::optional<at::Tensor>& scale = {},
                          const std::optional<at::Tensor>& zero_point = {}) {
  return std::get<0>(fake_quantize(x, quantizer, scale, zero_point));
}

}  // namespace qat
