#include "qat/checkpoint/formats/gguf.h"

#include <ATen/Functions.h>

#include <stdexcept>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/checkpoint/formats/minifloat.h"
#include "qat/error.h"

namespace qat {
namespace {

constexpr int64_t kBlock = 32;
constexpr const char* kOtherInputs =
    "llama.cpp rounds inputs to int8 in groups of 32, and these are rounded in another way";

// The bytes of a tensor of two-byte numbers, [out, blocks] to [out, blocks, 2].
at::Tensor bytes_of(const at::Tensor& halves) {
  return halves.contiguous().unsqueeze(-1).view(at::kByte);
}

// Fields of 4 bits, uint8: columns j and j + side / 2 of each `side` in one byte, [out, sides, side / 2].
at::Tensor halves_of(const at::Tensor& fields, int64_t side) {
  const at::Tensor u = fields.reshape({fields.size(0), -1, 2, side / 2});
  return u.select(2, 0).bitwise_or(u.select(2, 1).bitwise_left_shift(4));
}

// What enters a product with these blocks anyhow.
bool is_llama_cpps(const QuantSpec& input) {
  return !input.is_float8() && input.bits == 8 && input.symmetric() && input.dynamic &&
         input.granularity == Granularity::group && input.group_size == kBlock;
}

// A byte of scale before 32 codes; NVFP4 has four such bytes before four times 16 codes.
at::Tensor block_floats(const QuantizedWeights& layer) {
  const bool nvfp4 = layer.outer_scale.has_value();
  const int64_t rows = layer.codes.size(0), scales = nvfp4 ? 4 : 1;
  const at::Tensor codes =
      halves_of(minifloat_bits(layer.codes, Grid::e2m1), layer.weight.group_size);
  return at::cat({scale_bytes(layer).reshape({rows, -1, scales}),
                  codes.reshape({rows, -1, scales * layer.weight.group_size / 2})},
                 -1)
      .reshape({rows, -1});
}

std::string refusal_of_block_floats(const LayerPlan& layer) {
  const std::string name = weight_float_name(layer);
  const int64_t columns = name == "nvfp4" ? 64 : kBlock;
  if (name.empty() || !input_float_name(layer).empty()) return kOtherInputs;
  if (layer.in_features % columns != 0)
    return "its blocks of " + name + " have " + std::to_string(columns) +
           " columns, but there are " + std::to_string(layer.in_features);
  if (layer.input && !is_llama_cpps(*layer.input)) return kOtherInputs;
  return "";
}

// What a block's lowest level stands for, [out, blocks] in float16.
at::Tensor least_level(const QuantizedWeights& layer, const at::Tensor& scale) {
  const at::Tensor zero = per_group(*layer.zero_point, layer, kBlock);
  const at::Tensor exact = scale.to(at::kFloat).mul(zero.to(at::kFloat).add(8).neg());
  const at::Tensor stored = exact.to(at::kHalf);
  const int64_t bad = stored.to(at::kFloat).ne(exact).sum().item<int64_t>();
  if (bad != 0)
    throw InvalidArgument("gguf cannot hold " + layer.name +
                          ", because Q4_1 stores the least level of a block as a "
                          "float16, which " +
                          std::to_string(bad) + " of " + std::to_string(exact.numel()) +
                          " are not; train with scale_dtype: float16, which makes them so.");
  return stored;
}

}  // namespace

std::string gguf_type(const QuantSpec& spec) {
  if (is_coded(spec)) return spec.scale.has_outer() ? "NVFP4" : "MXFP4";
  if (spec.bits > 4) return "Q8_0";
  return spec.symmetric() ? "Q4_0" : "Q4_1";
}

std::string gguf_refusal(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (is_coded(weight) || !input_float_name(layer).empty()) return refusal_of_block_floats(layer);
  if (weight.is_float8())
    return "its blocks are integer, but the weights are " + dtype_name(weight);
  if (layer.input && !is_llama_cpps(*layer.input)) return kOtherInputs;
  if (weight.bits > 4 && !weight.symmetric())
    return "Q8_0 is symmetric, but the weights are asymmetric " + dtype_name(weight);
  if (layer.in_features % kBlock != 0)
    return "its blocks have 32 columns, but there are " + std::to_string(layer.in_features);
  const int64_t group = weight.granularity == Granularity::group   ? weight.group_size
                        : weight.granularity == Granularity::block ? weight.block[1]
                                                                   : kBlock;
  if (group % kBlock != 0)
    return "groups must be multiples of 32 columns, but have " + std::to_string(group);
  return "";
}

NamedTensors gguf_tensors(const QuantizedWeights& layer) {
  if (is_coded(layer.weight)) {
    NamedTensors tensors{{layer.name + ".weight", block_floats(layer)}};
    if (layer.outer_scale)
      tensors[layer.name + ".scale"] = layer.outer_scale->to(at::kFloat).reshape({1});
    return tensors;
  }
  const int64_t rows = layer.codes.size(0);
  const at::Tensor scale = per_group(layer.scale, layer, kBlock);
  std::vector<at::Tensor> parts{bytes_of(scale)};
  const std::string type = gguf_type(layer.weight);
  if (type == "Q4_1") parts.push_back(bytes_of(least_level(layer, scale)));
  parts.push_back(type == "Q8_0" ? layer.codes.reshape({rows, -1, kBlock}).view(at::kByte)
                                 : halves_of(layer.codes.add(8).to(at::kByte), kBlock));
  return {{layer.name + ".weight", at::cat(parts, -1).reshape({rows, -1})}};
}

Documents gguf_documents(const CheckpointPlan& /*plan*/) { return {}; }

}  // namespace qat
