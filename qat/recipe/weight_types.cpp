#include "qat/recipe/weight_types.h"

#include <optional>
#include <vector>

#include "qat/artifact.h"
#include "qat/error.h"
#include "qat/names.h"
#include "qat/recipe/fused_layers.h"
#include "qat/recipe/presets.h"

namespace qat {
namespace {

const std::string kFloatWord = "float";

// Of vLLM's kernels for 8 bits and of llama.cpp's blocks.
constexpr int64_t kIntegerGroup = 32;

std::string type_of(const QuantSpec& spec) {
  const Preset* preset = preset_of(spec);
  return preset ? preset->name : dtype_name(spec);
}

std::optional<int> width_of(const std::string& type) {
  for (int bits = 2; bits <= 8; ++bits)
    if (type == "int" + std::to_string(bits)) return bits;
  return std::nullopt;
}

[[noreturn]] void refuse_type(const std::string& type) {
  std::vector<std::string> names{"int2", "int3", "int4", "int5", "int6", "int7", "int8"};
  for (const Preset& preset : presets()) names.emplace_back(preset.name);
  names.push_back(kFloatWord);
  throw InvalidArgument("The type of a weight must be " + detail::join(names) + ", but is " + type +
                        ".");
}

// Engines find the scales of inputs in blocks by these rules (compressed_tensors.cpp).
QuantSpec input_of(const Preset& preset) {
  QuantSpec spec = preset.spec;
  spec.dynamic = !spec.scale.has_outer();
  if (preset.is_mx())
    spec.scale.code = spec.grid == Grid::e2m1 ? ScaleCode::e8m0_even : ScaleCode::e8m0_ceil;
  return spec;
}

// The input of a layer whose weight goes from `before` to `after`.
std::optional<QuantSpec> input_for(const std::optional<QuantSpec>& input, const QuantSpec& before,
                                   const QuantSpec& after) {
  if (!input || type_of(before) == type_of(after)) return input;
  if (before.takes_widths() && after.takes_widths()) return input;
  const Preset* preset = preset_of(after);
  if (!preset_of(*input) || !preset || !preset->for_inputs()) return std::nullopt;
  return input_of(*preset);
}

int64_t bits_of(const ScaleSpec& scale, int64_t scale_bits) {
  if (const auto dtype = dtype_of(scale.code); dtype && !scale.has_outer())
    return scale_bits ? scale_bits : *dtype == c10::ScalarType::Float ? 32 : 16;
  return bits_of_scale(scale.code);
}

LeftAlone left_in_float(const LayerPlan& layer) {
  return {layer.name, layer.elements(), layer.multiplied, "left in floating point by the mix"};
}

}  // namespace

QuantSpec weight_of_type(const QuantSpec& spec, const std::string& type, ScaleCode scale) {
  if (type == type_of(spec)) return spec;
  QuantSpec result;
  if (const auto bits = width_of(type)) {
    if (spec.takes_widths()) {
      result = spec;
    } else {
      result.granularity = Granularity::group;
      result.group_size = kIntegerGroup;
      result.scale = {scale};
    }
    result.bits = *bits;
  } else if (const Preset* preset = find_preset(type)) {
    result = preset->spec;
  } else {
    refuse_type(type);
  }
  const bool means = spec.range == Range::absmean && !result.ternary();
  result.range = means ? Range::minmax : spec.range;
  return result;
}

std::string misfit(const QuantSpec& spec, const LayerPlan& layer) {
  const auto [height, width] = block_shape(spec);
  const int64_t outer = spec.scale.outer_block[1];
  if (height > 1 && layer.out_features % height != 0)
    return "out_features that " + std::to_string(height) + " divides, but has " +
           std::to_string(layer.out_features);
  for (const int64_t columns : {width, outer})
    if (columns > 0 && layer.in_features % columns != 0)
      return "in_features that " + std::to_string(columns) + " divides, but has " +
             std::to_string(layer.in_features);
  return "";
}

LayerPlan retyped(const LayerPlan& layer, const std::string& type, ScaleCode scale) {
  LayerPlan result = layer;
  result.weight = weight_of_type(*layer.weight, type, scale);
  if (const std::string wanted = misfit(*result.weight, layer); !wanted.empty())
    throw InvalidArgument("To be " + type + ", " + layer.name + " must have " + wanted + ".");
  result.input = input_for(layer.input, *layer.weight, *result.weight);
  return result;
}

Plan with_types(const Plan& plan, const std::map<std::string, std::string>& types,
                ScaleCode scale) {
  Plan result = plan;
  result.layers.clear();
  auto left = types;
  for (LayerPlan layer : plan.layers) {
    const auto found = layer.weight ? types.find(layer.name) : types.end();
    left.erase(layer.name);
    if (found != types.end() && found->second == kFloatWord) {
      result.left.push_back(left_in_float(layer));
      ++result.untouched;
      continue;
    }
    if (found != types.end()) layer = retyped(layer, found->second, scale);
    result.layers.push_back(std::move(layer));
  }
  if (!left.empty())
    throw InvalidArgument("types must name planned layers, but name " + left.begin()->first + ".");
  share_outer_scales(result);
  return result;
}

Plan searched_plan(const Plan& plan) {
  Plan result = plan;
  result.stages = {Stage{}};
  for (LayerPlan& layer : result.layers)
    if (layer.weight) layer.weight->range = Range::fixed;
  return result;
}

int64_t size_of_weight(const QuantSpec& spec, int64_t rows, int64_t cols, int64_t scale_bits) {
  const int64_t stored = stored_bits(spec), scale = bits_of(spec.scale, scale_bits);
  const int64_t shift = spec.has_offset() ? scale : spec.symmetric() ? 0 : stored;
  const int64_t outer = spec.scale.outer_dtype == c10::ScalarType::Float ? 32 : 16;
  const int64_t levels = spec.has_offset() ? 2 : 1;
  return rows * cols * stored + block_count(spec, rows, cols) * (scale + shift) +
         outer_block_count(spec, rows, cols) * outer * levels;
}

}  // namespace qat
