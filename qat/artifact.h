#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/spec.h"

namespace qat {

// What training hands to every exporter: one linear layer in the numbers that its forward used.
//
//   codes        int8 [out, in], in the range of the weight's grid; for FP8 in torch's type of it
//   scale        [grid_rows, grid_cols], in the dtype that the checkpoint stores
//   zero_point   int8, shaped like `scale`; none on a symmetric grid
//   input_scale  float32 [1] and input_zero_point int8 [1], for calibrated inputs only
//
// The weight is (codes - zero_point) * scale, rounded once to the dtype of `scale`. Codes, scale
// and zero point lie on the host, so that exporting a model takes no memory of the device it is on.
struct QAT_API QuantizedWeights {
  std::string name;
  QuantSpec weight;
  std::optional<QuantSpec> input;
  at::Tensor codes;
  at::Tensor scale;
  std::optional<at::Tensor> zero_point;
  std::optional<at::Tensor> input_scale;
  std::optional<at::Tensor> input_zero_point;
};

// Codes of `weight` [out, in], which may be on any device, under the parameters that training used
// (float32 scale already rounded to weight_spec.scale_dtype, int8 zero point), the scale cast to
// `dtype`, in which the checkpoint stores it. Throws std::invalid_argument, naming the layer, when
// the weight has elements that are not finite, or when `dtype` cannot hold the scales exactly:
// training and deployment would then differ.
QAT_API QuantizedWeights quantize_weights(const std::string& name, const QuantSpec& spec,
                                          const at::Tensor& weight, const at::Tensor& scale,
                                          const at::Tensor& zero_point, at::ScalarType dtype);

// The weight that a reader of the checkpoint computes, [out, in], rounded once to `dtype`: that of
// the scale when not given.
QAT_API at::Tensor dequantize_weights(const QuantizedWeights& weights,
                                      std::optional<at::ScalarType> dtype = std::nullopt);

// The width that checkpoints store: 2, 4 or 8, the narrowest that holds the codes.
QAT_API int stored_bits(const QuantSpec& spec);

// Bits that a checkpoint spends on the weight, scales and zero points included, per element.
QAT_API double bits_per_weight(const QuantizedWeights& weights);

}  // namespace qat
