#include "qat/checkpoint/formats/awq.h"

#include <ATen/Functions.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/pack.h"

namespace qat {
namespace {

using nlohmann::json;

// Nibble i of a word holds column kOrder[i] of its eight.
const std::vector<int64_t> kOrder{0, 2, 4, 6, 1, 3, 5, 7};

// Codes int8 [rows, out] to int32 [rows, out / 8].
at::Tensor packed(const at::Tensor& codes) {
  const at::Tensor eights = codes.reshape({codes.size(0), -1, 8});
  const at::Tensor order = at::tensor(kOrder, codes.options().dtype(at::kLong));
  return pack(eights.index_select(2, order).reshape(codes.sizes()), 4);
}

}  // namespace

std::string awq_refusal(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (weight.is_float8() || layer.input) return "it takes integer weights and float inputs alone";
  if (weight.bits != 4)
    return "its weights must be int4, but are int" + std::to_string(weight.bits);
  if (weight.granularity == Granularity::block)
    return "weights must have granularity group, channel or tensor, but have block";
  if (layer.out_features % 8 != 0)
    return "its outputs must be a multiple of 8, but are " + std::to_string(layer.out_features);
  return "";
}

NamedTensors awq_tensors(const QuantizedWeights& layer) {
  const int64_t group = layer.codes.size(1) / layer.scale.size(1);
  const at::Tensor scale = per_group(layer.scale, layer, group);
  const at::Tensor zero = layer.zero_point ? per_group(*layer.zero_point, layer, group)
                                           : at::zeros_like(scale, at::kChar);
  return {{layer.name + ".qweight", packed(layer.codes.t().contiguous())},
          {layer.name + ".qzeros", packed(zero.t().contiguous())},
          {layer.name + ".scales", scale.t().contiguous()}};
}

Documents awq_documents(const CheckpointPlan& plan) {
  const LayerPlan& first = plan.layers.front();
  const int64_t group_size = group_size_of(*first.weight);
  for (const LayerPlan& layer : plan.layers)
    if (group_size_of(*layer.weight) != group_size)
      throw InvalidArgument("awq must have one group size for the whole model, but " + first.name +
                            " has " + describe(*first.weight) + " and " + layer.name + " " +
                            describe(*layer.weight) +
                            "; compressed-tensors and gptq_v2 can mix them.");
  const json config = {{"quant_method", "awq"},    {"bits", 4},
                       {"group_size", group_size}, {"zero_point", true},
                       {"version", "gemm"},        {"modules_to_not_convert", plan.ignore}};
  return {{"config.json", config.dump()}};
}

}  // namespace qat
