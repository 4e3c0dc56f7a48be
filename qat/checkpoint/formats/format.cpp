#include "qat/checkpoint/formats/format.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "qat/checkpoint/formats/awq.h"
#include "qat/checkpoint/formats/compressed_tensors.h"
#include "qat/checkpoint/formats/gguf.h"
#include "qat/checkpoint/formats/gptq.h"
#include "qat/checkpoint/formats/mlx.h"
#include "qat/checkpoint/formats/modelopt.h"
#include "qat/checkpoint/formats/onnx.h"
#include "qat/checkpoint/formats/plain.h"
#include "qat/checkpoint/formats/sizes.h"
#include "qat/error.h"
#include "qat/names.h"
#include "qat/recipe/fused_layers.h"
#include "qat/recipe/presets.h"

namespace qat {
namespace {

// What an engine must know of a tensor to read it: not how its scale was found.
std::string scheme_of(const QuantSpec& spec) {
  std::ostringstream text;
  text << dtype_name(spec) << ' ' << name_of(spec.granularity) << ' ' << spec.group_size << ' '
       << spec.block[0] << ' ' << spec.block[1] << ' ' << spec.symmetric() << spec.dynamic;
  return text.str();
}

std::string scheme_of(const LayerPlan& layer) {
  return scheme_of(*layer.weight) + (layer.input ? " input " + scheme_of(*layer.input) : "");
}

bool holds(const Format& format, const QuantSpec& spec) {
  if (format.holds_every_scheme || !is_coded(spec)) return true;
  const Preset* preset = preset_of(spec);
  const std::vector<std::string>& types = format.number_types;
  return preset && std::find(types.begin(), types.end(), preset->name) != types.end();
}

[[noreturn]] void refuse(const Format& format, const LayerPlan& layer, const std::string& why) {
  std::vector<std::string> others;
  for (const Format& other : formats())
    if (refusal(other, layer).empty()) others.push_back(other.name);
  throw InvalidArgument(std::string(format.name) + " cannot hold " + layer.name + ", because " +
                        why + "; " + detail::join(others, " and ") + " can.");
}

}  // namespace

const std::vector<Format>& formats() {
  static const std::vector<std::string> kLinear{"Linear"}, kEngines{"Linear", "Experts"},
      kLlamaCpp{"Linear", "Conv1D", "Embedding", "Experts"},
      kOnnx{"Linear", "Conv1d", "Conv2d", "Embedding"},
      kAll{"Linear",          "Conv1D",          "Conv1d",    "Conv2d",
           "ConvTranspose1d", "ConvTranspose2d", "Embedding", "Experts"},
      kBlockFloats{"nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp8_e4m3"};
  static const std::vector<Format> kFormats{
      {.name = "compressed-tensors",
       .used_by = "vLLM, transformers, SGLang, TensorRT-LLM (FP8)",
       .layer_types = kEngines,
       .scheme_refusal = &compressed_tensors_refusal,
       .tensors = &compressed_tensors_of,
       .documents = &compressed_tensors_documents,
       .engines_fuse = true,
       .number_types = kBlockFloats,
       .row_bits = &compressed_row_bits},
      {.name = "compressed-tensors-0.18",
       .used_by = "transformers, vLLM on GPUs with its Humming kernels",
       .layer_types = kEngines,
       .scheme_refusal = &compressed_tensors_refusal,
       .tensors = &dense_compressed_tensors_of,
       .documents = &dense_compressed_tensors_documents,
       .engines_fuse = true,
       .number_types = kBlockFloats,
       .row_bits = &dense_compressed_row_bits},
      {.name = "gptq",
       .used_by = "vLLM, transformers, TGI, SGLang",
       .layer_types = kEngines,
       .scheme_refusal = &gptq_refusal,
       .tensors = &gptq_tensors,
       .documents = &gptq_documents,
       .dtype = at::kHalf,
       .engines_fuse = true,
       .row_bits = &row_up_to_four,
       .grid_bits = &scales_and_zeros},
      {.name = "gptq_v2",
       .used_by = "transformers, GPTQModel",
       .layer_types = kEngines,
       .scheme_refusal = &gptq_v2_refusal,
       .tensors = &gptq_v2_tensors,
       .documents = &gptq_v2_documents,
       .dtype = at::kHalf,
       .engines_fuse = true,
       .row_bits = &row_up_to_four,
       .grid_bits = &scales_and_zeros},
      {.name = "awq",
       .used_by = "vLLM, transformers, TGI, LMDeploy",
       .layer_types = kEngines,
       .scheme_refusal = &awq_refusal,
       .tensors = &awq_tensors,
       .documents = &awq_documents,
       .dtype = at::kHalf,
       .engines_fuse = true,
       .grid_bits = &scales_and_zeros},
      {.name = "gguf",
       .used_by = "llama.cpp, Ollama, LM Studio",
       .layer_types = kLlamaCpp,
       .scheme_refusal = &gguf_refusal,
       .tensors = &gguf_tensors,
       .documents = &gguf_documents,
       .dtype = at::kHalf,
       .number_types = {"nvfp4", "mxfp4", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q5_1",
                        "iq4_nl", "iq4_xs"},
       .bits_in_blocks = &gguf_bits},
      {.name = "mlx",
       .used_by = "mlx-lm, LM Studio on Apple silicon",
       .layer_types = {"Linear", "Embedding"},
       .scheme_refusal = &mlx_refusal,
       .tensors = &mlx_tensors,
       .documents = &mlx_documents,
       .holds_every_scheme = true,
       .row_bits = &mlx_row_bits,
       .grid_bits = &mlx_grid_bits},
      {.name = "modelopt",
       .used_by = "TensorRT-LLM, vLLM (FP8, NVFP4, MXFP8)",
       .layer_types = kLinear,
       .scheme_refusal = &modelopt_refusal,
       .tensors = &modelopt_tensors,
       .documents = &modelopt_documents,
       .engines_fuse = true,
       .number_types = {"nvfp4", "mxfp8_e4m3"}},
      {.name = "onnx",
       .used_by = "onnxruntime",
       .layer_types = kOnnx,
       .scheme_refusal = &onnx_refusal,
       .tensors = &onnx_tensors,
       .documents = &onnx_documents},
      {.name = "safetensors",
       .used_by = "LibTorch programs",
       .layer_types = kAll,
       .scheme_refusal = &plain_refusal,
       .tensors = &plain_tensors,
       .documents = &plain_documents,
       .holds_every_scheme = true,
       .row_bits = &row_up_to_four},
  };
  return kFormats;
}

std::string refusal(const Format& format, const LayerPlan& layer) {
  const std::vector<std::string>& types = format.layer_types;
  if (std::find(types.begin(), types.end(), layer.type) == types.end())
    return "the layer is of the type " + layer.type + ", and there is a place for " +
           detail::join(types, " and ");
  for (const auto& spec : {layer.weight, layer.input})
    if (spec && !holds(format, *spec))
      return "it takes integers and FP8 under scales in float32, bfloat16 or float16" +
             (format.number_types.empty() ? ""
                                          : ", " + detail::join(format.number_types, " and ")) +
             ", but there is " + describe(*spec);
  return format.scheme_refusal(layer);
}

bool is_coded(const QuantSpec& spec) {
  return (spec.is_named() && !spec.is_float8()) || spec.has_offset() || !spec.scale.is_dtype();
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Format& format : formats()) names.push_back(format.name);
  return names;
}

const Format& find_format(const std::string& name) {
  for (const Format& format : formats())
    if (name == format.name) return format;
  throw InvalidArgument("format must be " + detail::join(format_names(), " or ") + ", but is " +
                        name + ".");
}

void check_format(const Format& format, const CheckpointPlan& plan) {
  if (plan.layers.empty())
    throw InvalidArgument(std::string(format.name) +
                          " needs at least one quantized layer, but there is none.");
  for (const LayerPlan& layer : plan.layers) {
    if (!layer.weight)
      throw InvalidArgument(
          "To be written, every planned layer must have a quantized weight, but " + layer.name +
          " has not.");
    const std::string why = refusal(format, layer);
    if (!why.empty()) refuse(format, layer, why);
  }
  if (plan.kv_cache && plan.kv_cache->has_outer())
    throw InvalidArgument(std::string(format.name) +
                          " has no place for the outer scales of the cache of keys and values (" +
                          describe(*plan.kv_cache) +
                          "), of which engines know different multiples; kv_cache.calibrated: "
                          "false has none.");
  if (!format.engines_fuse) return;
  const std::vector<std::string> problems = fusion_problems(plan);
  if (!problems.empty()) throw InvalidArgument(problems.front());
}

LayerPlan plan_of(const QuantizedWeights& layer) {
  return {layer.name, layer.codes.size(1), layer.codes.size(0), layer.weight, layer.input};
}

int64_t group_size_of(const QuantSpec& spec) {
  return spec.granularity == Granularity::group ? spec.group_size : -1;
}

at::Tensor per_group(const at::Tensor& grid, const QuantizedWeights& layer, int64_t group) {
  const int64_t rows = layer.codes.size(0), cols = layer.codes.size(1);
  const auto [height, width] = block_shape(layer.weight);
  const auto index = [&](int64_t count, int64_t step, int64_t side, int64_t whole) {
    return at::arange(count, grid.options().dtype(at::kLong))
        .mul(step)
        .div(side == -1 ? whole : side, "floor");
  };
  return grid.index_select(0, index(rows, 1, height, rows))
      .index_select(1, index(cols / group, group, width, cols));
}

std::vector<std::string> fusion_problems(const CheckpointPlan& plan) {
  std::map<std::string, std::string> schemes;
  for (const LayerPlan& layer : plan.layers) schemes[layer.name] = scheme_of(layer);
  for (const std::string& name : plan.ignore) schemes[name] = "float";
  std::vector<std::string> problems;
  for (const auto& [name, scheme] : schemes)
    for (const std::string& other : fused_with(name)) {
      const auto found = schemes.find(other);
      if (found != schemes.end() && found->second != scheme)
        problems.push_back(name + " and " + other +
                           " must share one scheme, because engines fuse them, but they differ.");
    }
  return problems;
}

std::string fusion_warning(const CheckpointPlan& plan) {
  for (const LayerPlan& layer : plan.layers)
    if (layer.weight && layer.weight->granularity == Granularity::tensor &&
        !fused_with(layer.name).empty())
      return layer.name +
             " and the layers that engines fuse it with have a scale each for the "
             "whole weight, of which engines take the largest and round the others again; "
             "granularity: channel keeps what was trained.";
  return "";
}

}  // namespace qat
