#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/ops/blocks.h"
#include "qat/ops/quantizer.h"

namespace qat {

// The codes of `x` in as little memory as is quick to read: what a layer keeps of its weight
// between a forward and its backward. Not a checkpoint format.
//
//   x            float32, float16 or bfloat16, any shape, seen as a matrix [rows, cols]
//   quantizer    a Quantizer's text (quantizer.h) of whole levels; up to 4 bits share a byte in twos
//   scale        float32 [grid_rows, grid_cols], as it is stored, or a learned one; none: found from
//                the range of each block
//   zero_point   shaped like `scale`, int8, or float32 when learned; none means 0
//   outer_scale  as in fake_quantize
//
// On return (codes, scale, zero_point): codes uint8 [rows, bytes_per_row], scale and zero point of
// each block. An element that is not finite has no code: its block's scale is returned as NaN, so
// that decode gives NaN rather than a legal level. Not differentiable.
QAT_API std::tuple<at::Tensor, at::Tensor, at::Tensor> encode(
    const at::Tensor& x, std::string_view quantizer, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& zero_point, const std::optional<at::Tensor>& outer_scale);

// The inverse: [rows, cols] in `dtype`, bit for bit what fake_quantize gives for a finite x.
QAT_API at::Tensor decode(const at::Tensor& codes, std::string_view quantizer,
                          const at::Tensor& scale, const at::Tensor& zero_point, c10::SymInt cols,
                          at::ScalarType dtype);

// Where the codes of a row lie. Up to 4 bits, byte j of a segment holds element 2 j in its lower
// half and element 2 j + 1 in its upper half; above, a byte holds one code. Each segment begins a
// byte. Codes count from the grid's lowest level.
struct QAT_API CodeLayout {
  bool shared;        // two codes to a byte
  int64_t per_block;  // bytes of a whole segment
  int64_t per_row;

  QAT_HOST_DEVICE int64_t bytes_of(int64_t length) const {
    return shared ? (length + 1) / 2 : length;
  }
};

inline CodeLayout code_layout(const BlockLayout& layout, int64_t bits) {
  CodeLayout codes{bits <= 4, 0, 0};
  codes.per_block = codes.bytes_of(layout.block_cols);
  codes.per_row = layout.grid_cols == 0
                      ? 0
                      : (layout.grid_cols - 1) * codes.per_block +
                            codes.bytes_of(layout.segment_length(layout.grid_cols - 1));
  return codes;
}

}  // namespace qat
