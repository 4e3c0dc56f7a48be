#include "qat/checkpoint/formats/gguf.h"

#include <ATen/Functions.h>

#include <cctype>
#include <map>
#include <stdexcept>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/checkpoint/formats/gguf_fields.h"
#include "qat/checkpoint/formats/gguf_k.h"
#include "qat/checkpoint/formats/gguf_simple.h"
#include "qat/checkpoint/formats/minifloat.h"
#include "qat/recipe/presets.h"

namespace qat {
namespace {

// What enters a product with blocks of so many columns anyhow.
bool is_llama_cpps(const QuantSpec& input, int64_t columns) {
  return !input.is_float8() && input.bits == 8 && input.symmetric() && input.dynamic &&
         input.granularity == Granularity::group && input.group_size == columns;
}

std::string refusal_of_input(const LayerPlan& layer, int64_t columns) {
  if (input_float_name(layer).empty() && (!layer.input || is_llama_cpps(*layer.input, columns)))
    return "";
  return "llama.cpp rounds inputs to int8 in groups of " + std::to_string(columns) +
         ", and these are rounded in another way";
}

// A byte of scale before 32 codes; NVFP4 has four such bytes before four times 16 codes.
at::Tensor block_floats(const QuantizedWeights& layer) {
  const bool nvfp4 = layer.outer_scale.has_value();
  const int64_t rows = layer.codes.size(0), scales = nvfp4 ? 4 : 1;
  const int64_t group = layer.weight.group_size, block = scales * group;
  return rows_of_blocks({scale_bytes(layer).reshape({rows, -1, scales}),
                         fields(minifloat_bits(layer.codes, Grid::e2m1), block, group, 4)});
}

std::string refusal_of_block_floats(const LayerPlan& layer) {
  const std::string name = weight_float_name(layer);
  const int64_t columns = name == "nvfp4" ? 64 : kGgufBlock;
  if (layer.in_features % columns != 0)
    return "its blocks of " + name + " have " + std::to_string(columns) +
           " columns, but there are " + std::to_string(layer.in_features);
  return refusal_of_input(layer, kGgufBlock);
}

// Columns that share a scale in a row of so many.
int64_t group_of(const QuantSpec& spec, int64_t columns) {
  return spec.granularity == Granularity::group   ? spec.group_size
         : spec.granularity == Granularity::block ? spec.block[1]
                                                  : columns;
}

// Whether blocks of `block` columns each lie in one group of a row of so many.
bool fits(const QuantSpec& spec, int64_t columns, int64_t block) {
  return columns % block == 0 && group_of(spec, columns) % block == 0;
}

std::string upper_case(std::string name) {
  for (char& letter : name) letter = static_cast<char>(std::toupper(letter));
  return name;
}

std::string refusal_of_simple(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8())
    return "its blocks are integer, but the weights are " + dtype_name(weight);
  if (weight.bits > 4 && !weight.symmetric() && !weight.has_offset())
    return "Q8_0 is symmetric, but the weights are asymmetric " + dtype_name(weight);
  if (layer.in_features % kGgufBlock != 0)
    return "its blocks have 32 columns, but there are " + std::to_string(layer.in_features);
  const int64_t group = group_of(weight, layer.in_features);
  if (group % kGgufBlock != 0)
    return "groups must be multiples of 32 columns, but have " + std::to_string(group);
  return refusal_of_input(layer,
                          gguf_type(weight, layer.in_features) == "TQ2_0" ? 256 : kGgufBlock);
}

}  // namespace

std::string gguf_type(const QuantSpec& spec, int64_t columns) {
  if (is_coded(spec)) {
    const Preset* preset = preset_of(spec);
    return preset ? upper_case(preset->name) : "";
  }
  if (!spec.symmetric()) return "Q4_1";
  if (spec.bits == 2 && spec.grid == Grid::narrow && fits(spec, columns, 256)) return "TQ2_0";
  if (spec.bits == 2 && fits(spec, columns, 64)) return "Q2_0";
  return spec.bits <= 4 ? "Q4_0" : spec.bits == 5 ? "Q5_0" : "Q8_0";
}

std::string gguf_refusal(const LayerPlan& layer) {
  if (layer.weight->is_float() && is_coded(*layer.weight)) return refusal_of_block_floats(layer);
  if (is_k_quant(gguf_type(*layer.weight, layer.in_features))) return refusal_of_input(layer, 256);
  return refusal_of_simple(layer);
}

double gguf_bits(const QuantSpec& spec, int64_t columns) {
  static const std::map<std::string, double> kWhole{{"Q4_0", 4.5},  {"Q4_1", 5.0},
                                                    {"Q5_0", 5.5},  {"Q8_0", 8.5},
                                                    {"Q2_0", 2.25}, {"TQ2_0", 2.0625}};
  const auto found = kWhole.find(gguf_type(spec, columns));
  return found != kWhole.end() ? found->second : 0.0;
}

NamedTensors gguf_tensors(const QuantizedWeights& layer) {
  const std::string type = gguf_type(layer.weight, layer.codes.size(1)),
                    name = layer.name + ".weight";
  if (is_k_quant(type)) return {{name, k_quant_blocks(layer, type)}};
  if (!layer.weight.is_float()) return {{name, simple_blocks(layer, type)}};
  NamedTensors tensors{{name, block_floats(layer)}};
  if (layer.outer_scale)
    tensors[layer.name + ".scale"] = layer.outer_scale->to(at::kFloat).reshape({1});
  return tensors;
}

Documents gguf_documents(const CheckpointPlan& /*plan*/) { return {}; }

}  // namespace qat
