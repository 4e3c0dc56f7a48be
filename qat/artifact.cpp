#include "qat/artifact.h"

#include <ATen/Functions.h>

#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/quantize.h"

namespace qat {

QuantizedWeights quantize_weights(const std::string& name, const QuantSpec& spec,
                                  const at::Tensor& weight, const at::Tensor& scale,
                                  const at::Tensor& zero_point, at::ScalarType dtype) {
  const at::Tensor master = weight.detach().cpu(), found = scale.detach().cpu();
  const int64_t bad = master.numel() - at::isfinite(master).sum().item<int64_t>();
  if (bad != 0)
    throw InvalidArgument("The weight of " + name + " must be finite, but has " +
                          std::to_string(bad) + " elements that are NaN or infinite.");
  const at::Tensor stored = found.to(dtype);
  if (!at::equal(stored.to(at::kFloat), found))
    throw InvalidArgument("The scales of " + name + " were trained in " +
                          name_of(spec.scale_dtype) + ", which a checkpoint in " + name_of(dtype) +
                          " cannot hold exactly; set scale_dtype to " + name_of(dtype) +
                          " or export in " + name_of(spec.scale_dtype) + " or float32.");
  QuantizedWeights result{name, spec, std::nullopt, {}, stored, {}, {}, {}};
  if (!spec.symmetric()) result.zero_point = zero_point.detach().cpu();
  result.codes = quantize(master, quantizer_of(spec, spec.bits, Quantizer::Mode::fixed).text(),
                          found, result.zero_point);
  return result;
}

at::Tensor dequantize_weights(const QuantizedWeights& weights,
                              std::optional<at::ScalarType> dtype) {
  const at::ScalarType result = dtype.value_or(weights.scale.scalar_type());
  const at::Tensor scale = weights.scale.to(at::kFloat);
  return dequantize(weights.codes, scale, weights.zero_point, block_shape(weights.weight), result);
}

int stored_bits(const QuantSpec& spec) { return spec.bits <= 2 ? 2 : spec.bits <= 4 ? 4 : 8; }

double bits_per_weight(const QuantizedWeights& weights) {
  const int bits = stored_bits(weights.weight);
  const double per_block =
      8.0 * static_cast<double>(weights.scale.element_size()) + (weights.zero_point ? bits : 0);
  return bits + per_block * static_cast<double>(weights.scale.numel()) /
                    static_cast<double>(weights.codes.numel());
}

}  // namespace qat
