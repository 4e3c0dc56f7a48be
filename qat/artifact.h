#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/outer_parameters.h"
#include "qat/spec.h"

namespace qat {

// What training hands to every exporter: one linear layer in the numbers that its forward used.
//
//   codes        int8 [out, in], in the range of the weight's grid; of a float in torch's narrowest
//                type that has its numbers, float8_e5m2 for its own and float8_e4m3fn for the others
//   scale        [grid_rows, grid_cols], in the dtype that the checkpoint stores, or codes of it:
//                float8_e8m0fnu, float8_e4m3fn, or int8 for 4-, 6- and 8-bit ones
//   zero_point   int8, shaped like `scale`; none on a symmetric grid
//   offset       of the grid with offsets in its place, as `scale`
//   outer_scale, outer_offset   [outer_rows, outer_cols], where scales and offsets are multiples of
//                them, in spec.scale.outer_dtype
//   input_scale  float32 [1] and input_zero_point int8 [1], for calibrated inputs only; of those in
//                blocks under an outer scale, that
//
// The weight is (codes - zero_point) * scale * outer_scale + offset * outer_offset, the product of
// both scales rounded to float32, and all of it once to a dtype (numerics.md 3, 7d). All lie on the
// host, so that exporting a model takes no memory of the device it is on.
struct QAT_API QuantizedWeights {
  std::string name;
  QuantSpec weight;
  std::optional<QuantSpec> input;
  at::Tensor codes;
  at::Tensor scale;
  std::optional<at::Tensor> zero_point;
  std::optional<at::Tensor> input_scale;
  std::optional<at::Tensor> input_zero_point;
  std::optional<at::Tensor> offset;
  std::optional<at::Tensor> outer_scale;
  std::optional<at::Tensor> outer_offset;
};

// Codes of `weight` [out, in], which may be on any device, under the parameters that training used
// (float32 scale and offset already rounded as spec.scale says, int8 zero point). A scale that is a
// number is cast to `dtype`, in which the checkpoint stores it; one that is a code, by `outer`, needs
// none. Throws std::invalid_argument, naming the layer, when the weight has elements that are not
// finite, or when the checkpoint cannot hold the scales exactly: training and deployment would then
// differ.
QAT_API QuantizedWeights quantize_weights(const std::string& name, const QuantSpec& spec,
                                          const at::Tensor& weight, const at::Tensor& scale,
                                          const at::Tensor& zero_point, at::ScalarType dtype,
                                          const OuterParameters& outer = {});

// The weight that a reader of the checkpoint computes, [out, in], rounded once to `dtype`: that of
// the scale when not given, float32 where scales are codes.
QAT_API at::Tensor dequantize_weights(const QuantizedWeights& weights,
                                      std::optional<at::ScalarType> dtype = std::nullopt);

// Rows `begin` to `end` of the same layer, as a layer called `name`: a matrix of an expert out of all
// that lie one below the other. Throws std::invalid_argument when blocks of a scale lie across them.
QAT_API QuantizedWeights rows_of(const QuantizedWeights& weights, const std::string& name,
                                 int64_t begin, int64_t end);

// What torch keeps stored scales in: `dtype` where they are numbers, else the type of their codes.
QAT_API at::ScalarType scale_storage(const ScaleSpec& scale, at::ScalarType dtype);

// What a checkpoint spends on a scale that is a code: llama.cpp packs those of 4 and 6 bits.
QAT_API int bits_of_scale(ScaleCode code);

// The width that checkpoints store: of integers under scales that are numbers 2, 4 or 8, the
// narrowest that holds the codes; else the width itself.
QAT_API int stored_bits(const QuantSpec& spec);

// Bits that a checkpoint spends on the weight, scales and zero points included, per element.
QAT_API double bits_per_weight(const QuantizedWeights& weights);

}  // namespace qat
