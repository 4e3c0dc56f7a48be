#include "qat/artifact.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/parameters.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

// One entry per block from the outer scales, 1 without any.
at::Tensor outer_of(const std::optional<at::Tensor>& outer, const at::Tensor& blocks,
                    const QuantSpec& spec) {
  if (!outer) return at::ones({1, 1});
  return spread_outer(outer->to(at::kFloat), blocks,
                      quantizer_of(spec, spec.bits, Quantizer::Mode::fixed));
}

// Scales or offsets, float32 as training used them, as a checkpoint stores them.
at::Tensor stored(const std::string& name, const QuantSpec& spec, const at::Tensor& found,
                  const std::optional<at::Tensor>& outer, at::ScalarType dtype) {
  const at::ScalarType storage = scale_storage(spec.scale, dtype);
  const at::Tensor spread = outer_of(outer, found, spec), inner = found / spread;
  const at::Tensor codes = (storage == at::kChar ? inner.round() : inner).to(storage);
  if (at::equal(codes.to(at::kFloat) * spread, found)) return codes;
  if (!spec.scale.is_dtype())
    throw InvalidArgument("The scales of " + name + " must be multiples of its outer scales in " +
                          scale_name(spec.scale) + ", but are not.");
  const std::string trained = scale_name(spec.scale);
  throw InvalidArgument("The scales of " + name + " were trained in " + trained +
                        ", which a checkpoint in " + name_of(dtype) +
                        " cannot hold exactly; set scale_dtype to " + name_of(dtype) +
                        " or export in " + trained + " or float32.");
}

std::optional<at::Tensor> on_host(const std::optional<at::Tensor>& tensor, at::ScalarType dtype) {
  return tensor ? std::optional(tensor->detach().cpu().to(dtype)) : std::nullopt;
}

// The ends of a range tell, which are found many times faster than a mask; it counts when they do.
void check_finite(const std::string& name, const at::Tensor& weight) {
  if (weight.numel() == 0) return;
  const auto [low, high] = at::aminmax(weight);
  if (std::isfinite(low.item<float>()) && std::isfinite(high.item<float>())) return;
  const int64_t bad = weight.numel() - at::isfinite(weight).sum().item<int64_t>();
  throw InvalidArgument("The weight of " + name + " must be finite, but has " +
                        std::to_string(bad) + " elements that are NaN or infinite.");
}

}  // namespace

int bits_of_scale(ScaleCode code) {
  if (code == ScaleCode::int4) return 4;
  return code == ScaleCode::int6 || code == ScaleCode::int6_signed ? 6 : 8;
}

at::ScalarType scale_storage(const ScaleSpec& scale, at::ScalarType dtype) {
  switch (scale.code) {
    case ScaleCode::e8m0_floor:
    case ScaleCode::e8m0_even:
    case ScaleCode::e8m0_ceil:
      return at::kFloat8_e8m0fnu;
    case ScaleCode::e4m3:
    case ScaleCode::e4m3_four_over_six:
      return at::kFloat8_e4m3fn;
    case ScaleCode::int6:
    case ScaleCode::int8:
    case ScaleCode::int4:
    case ScaleCode::int6_signed:
      return at::kChar;
    default:
      return dtype;
  }
}

QuantizedWeights quantize_weights(const std::string& name, const QuantSpec& spec,
                                  const at::Tensor& weight, const at::Tensor& scale,
                                  const at::Tensor& zero_point, at::ScalarType dtype,
                                  const OuterParameters& outer) {
  const at::Tensor master = weight.detach().cpu(), found = scale.detach().cpu();
  check_finite(name, master);
  QuantizedWeights result;
  result.name = name;
  result.weight = spec;
  result.outer_scale = on_host(outer.scale, spec.scale.outer_dtype);
  result.outer_offset = on_host(outer.offset, spec.scale.outer_dtype);
  result.scale = stored(name, spec, found, result.outer_scale, dtype);
  std::optional<at::Tensor> shift;
  if (!spec.symmetric()) shift = zero_point.detach().cpu();
  if (spec.has_offset())
    result.offset = stored(name, spec, *shift, result.outer_offset, dtype);
  else
    result.zero_point = shift;
  result.codes =
      quantize(master, quantizer_of(spec, spec.bits, Quantizer::Mode::fixed).text(), found, shift);
  return result;
}

at::Tensor dequantize_weights(const QuantizedWeights& weights,
                              std::optional<at::ScalarType> dtype) {
  const QuantSpec& spec = weights.weight;
  const at::ScalarType own = spec.scale.is_dtype() ? weights.scale.scalar_type() : at::kFloat;
  const auto effective = [&](const at::Tensor& inner, const std::optional<at::Tensor>& outer) {
    return inner.to(at::kFloat) * outer_of(outer, inner, spec);
  };
  const auto shift = weights.offset
                         ? std::optional(effective(*weights.offset, weights.outer_offset))
                         : weights.zero_point;
  return dequantize(weights.codes, effective(weights.scale, weights.outer_scale), shift,
                    block_shape(spec), dtype.value_or(own));
}

QuantizedWeights rows_of(const QuantizedWeights& weights, const std::string& name, int64_t begin,
                         int64_t end) {
  const int64_t rows = weights.codes.size(0);
  // Of a grid whose rows each stand for as many of the weight's; one row may stand for all.
  const auto cut = [&](const at::Tensor& grid) {
    if (grid.size(0) == 1) return grid;
    const int64_t height = rows / grid.size(0);
    if (rows % grid.size(0) || begin % height || end % height)
      throw InvalidArgument("Blocks of scales must not lie across the rows of " + name +
                            ", but each has " + std::to_string(height) + " rows of " +
                            weights.name + ".");
    return grid.slice(0, begin / height, end / height);
  };
  const auto cut_if = [&](std::optional<at::Tensor>& grid) {
    if (grid) grid = cut(*grid);
  };
  QuantizedWeights part = weights;
  part.name = name;
  part.codes = weights.codes.slice(0, begin, end);
  part.scale = cut(weights.scale);
  cut_if(part.zero_point);
  cut_if(part.offset);
  cut_if(part.outer_scale);
  cut_if(part.outer_offset);
  return part;
}

int stored_bits(const QuantSpec& spec) {
  if (!spec.takes_widths()) return spec.bits;
  return spec.bits <= 2 ? 2 : spec.bits <= 4 ? 4 : 8;
}

double bits_per_weight(const QuantizedWeights& weights) {
  const int bits = stored_bits(weights.weight);
  const ScaleCode code = weights.weight.scale.code;
  const int per_scale =
      is_code(code) ? bits_of_scale(code) : 8 * static_cast<int>(weights.scale.element_size());
  const int per_block = per_scale + (weights.offset ? per_scale : weights.zero_point ? bits : 0);
  double total = static_cast<double>(per_block) * static_cast<double>(weights.scale.numel());
  for (const auto& outer : {weights.outer_scale, weights.outer_offset})
    if (outer) total += 8.0 * static_cast<double>(outer->nbytes());
  return bits + total / static_cast<double>(weights.codes.numel());
}

}  // namespace qat
