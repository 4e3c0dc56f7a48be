#include <string>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/checkpoint/formats/compressed_tensors.h"

// What no reader of compressed-tensors takes.

namespace qat {
namespace {

std::string refusal_of_int8_inputs(const QuantSpec& weight, const QuantSpec& input) {
  const bool eight = weight.bits == 8;
  if (input.granularity == Granularity::group)
    return "int8 inputs have a scale per token or one for all, but these have one per group";
  if (input.bits != 8 || (!eight && weight.bits != 4))
    return "quantized inputs need int8 or int4 weights and int8 inputs, but they are int" +
           std::to_string(weight.bits) + " and int" + std::to_string(input.bits);
  if (!weight.symmetric()) return "with quantized inputs the weights must be symmetric";
  if (eight && weight.granularity != Granularity::channel &&
      weight.granularity != Granularity::tensor)
    return "with quantized inputs int8 weights must have granularity channel or tensor";
  if (!eight && (!input.dynamic || input.granularity != Granularity::token || !input.symmetric()))
    return "int4 weights go with int8 inputs that are symmetric and dynamic, a scale per token";
  return "";
}

std::string refusal_of_float8_inputs(const QuantSpec& weight, const QuantSpec& input) {
  if (input.grid != Grid::e4m3) return "FP8 weights and inputs must both be fp8_e4m3";
  if (input.granularity == Granularity::group && weight.granularity != Granularity::block)
    return "FP8 inputs in groups go with FP8 weights in blocks";
  if (weight.is_float8()) return "";
  if (weight.bits != 4 || !weight.symmetric())
    return "with FP8 inputs the weights must be fp8_e4m3 or symmetric int4";
  return "";
}

bool is_fp8_in_groups(const QuantSpec& input, int64_t group_size) {
  return input.grid == Grid::e4m3 && !is_coded(input) && input.dynamic &&
         input.granularity == Granularity::group && input.group_size == group_size;
}

// Engines find the scales of inputs in blocks by a rule of their own.
std::string refusal_of_rule(const QuantSpec& input, ScaleCode rule, const char* name) {
  if (input.scale.code == rule) return "";
  return "engines round the scales of such inputs by the rule " + std::string(name) +
         ", so that they need scale_dtype: " + name + ", but they have " + scale_name(input.scale);
}

std::string refusal_of_block_floats(const LayerPlan& layer) {
  const std::string weight = weight_float_name(layer), input = input_float_name(layer);
  if (weight.empty()) return "inputs in " + input + " go with weights in such a type";
  const int64_t columns = weight == "nvfp4" ? 16 : 32;
  if (layer.in_features % columns != 0)
    return "blocks of " + weight + " have " + std::to_string(columns) + " columns, but there are " +
           std::to_string(layer.in_features);
  if (layer.type == "Experts") return "experts must be integers or fp8_e4m3";
  if (!layer.input) return "";
  if (weight == "nvfp4" && input == "nvfp4")
    return layer.input->dynamic ? "engines take the outer scale of inputs from the checkpoint, so "
                                  "that they need dynamic: false, but it is found in each call"
                                : "";
  if (weight == "nvfp4") return "nvfp4 weights go with inputs in nvfp4 or none";
  if (weight == "mxfp4" && input == "mxfp4")
    return refusal_of_rule(*layer.input, ScaleCode::e8m0_even, "e8m0_even");
  if (weight == "mxfp4" && is_fp8_in_groups(*layer.input, 128)) return "";
  if (weight != "mxfp4" && input == "mxfp8_e4m3")
    return refusal_of_rule(*layer.input, ScaleCode::e8m0_ceil, "e8m0_ceil");
  return std::string(weight == "mxfp4" ? "mxfp4 weights go with inputs in mxfp4, in dynamic "
                                         "fp8_e4m3 in groups of 128"
                                       : weight + " weights go with inputs in mxfp8_e4m3") +
         " or none";
}

}  // namespace

bool has_int8_inputs(const LayerPlan& layer) { return layer.input && !layer.input->is_float8(); }

std::string compressed_tensors_refusal(const LayerPlan& layer) {
  if (!weight_float_name(layer).empty() || !input_float_name(layer).empty())
    return refusal_of_block_floats(layer);
  // transformers reads experts by a way of its own, which knows no zero points, and vLLM has kernels
  // for these alone.
  if (layer.type == "Experts" && !layer.weight->is_float8() &&
      (!layer.weight->symmetric() || (layer.weight->bits != 4 && layer.weight->bits != 8)))
    return "experts must have symmetric weights of int4 or int8, or fp8_e4m3";
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8() && weight.grid != Grid::e4m3)
    return "FP8 weights and inputs must both be fp8_e4m3";
  if (weight.granularity == Granularity::block && !weight.is_float8())
    return "integer weights must have granularity tensor, channel or group, but have block";
  if (weight.granularity == Granularity::tensor && !weight.symmetric())
    return "zero points are those of groups or channels, but there is one for the whole weight";
  if (has_int8_inputs(layer)) {
    if (weight.is_float8()) return "FP8 weights and inputs must both be fp8_e4m3";
    return refusal_of_int8_inputs(weight, *layer.input);
  }
  return layer.input ? refusal_of_float8_inputs(weight, *layer.input) : "";
}

}  // namespace qat
