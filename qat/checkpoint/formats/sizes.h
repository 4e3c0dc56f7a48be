// Bits that checkpoints spend on codes and on what lies beside them, as several formats have it
// (Format::row_bits, Format::grid_bits).
#pragma once

#include <cstdint>
#include <optional>

#include "qat/spec.h"

namespace qat {

// Of a format that packs widths of up to 4 bits as they are.
int64_t row_up_to_four(const QuantSpec& spec, const std::optional<QuantSpec>& input, int64_t count);

// GPTQ's and AWQ's files have a zero point beside each scale, whatever the grid.
int64_t scales_and_zeros(const QuantSpec& spec, int64_t cols, int64_t scale_bits);

}  // namespace qat
