#include "qat/checkpoint/formats/mlx.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qat/checkpoint/formats/block_floats.h"
#include "qat/error.h"
#include "qat/names.h"
#include "qat/ops/pack.h"

namespace qat {
namespace {

using nlohmann::json;

// Of elements that are looked at together, so that a large layer takes no second copy of itself.
constexpr int64_t kSlice = int64_t{1} << 20;

bool is_nvfp4(const QuantSpec& spec) {
  return spec.grid == Grid::e2m1 && spec.granularity == Granularity::group &&
         spec.group_size == 16 && spec.scale.code == ScaleCode::e4m3 && !spec.scale.has_outer();
}

const char* mode_of(const QuantSpec& spec) {
  const std::string name = block_float_name(spec);
  if (name == "mxfp4") return "mxfp4";
  if (name == "mxfp8_e4m3") return "mxfp8";
  return is_nvfp4(spec) ? "nvfp4" : "affine";
}

bool is_affine(const QuantSpec& spec) { return std::string(mode_of(spec)) == "affine"; }

// The widest group that MLX has and that no block of scales lies across, 0 if there is none.
int64_t group_of(const LayerPlan& layer) {
  if (!is_affine(*layer.weight)) return layer.weight->group_size;
  const int64_t side = block_shape(*layer.weight)[1];
  const int64_t width = side == -1 ? layer.in_features : side;
  for (const int64_t group : {128, 64, 32})
    if (width % group == 0 && layer.in_features % group == 0) return group;
  return 0;
}

json entry_of(const LayerPlan& layer) {
  return {{"group_size", group_of(layer)},
          {"bits", mlx_bits(*layer.weight)},
          {"mode", mode_of(*layer.weight)}};
}

// Powers of two become numbers in a dtype that has them all.
at::Tensor as_numbers(const at::Tensor& scale, const ScaleSpec& spec) {
  return spec.is_dtype() ? scale : scale.to(at::kFloat).to(at::kBFloat16);
}

bool is_exact(const at::Tensor& numbers, at::ScalarType dtype) {
  return at::equal(numbers.to(dtype).to(at::kDouble), numbers);
}

// Whether scale * code is exact in the dtype of the scales, for each code [out, in] from 0 on.
bool has_exact_products(const at::Tensor& codes, int64_t middle, const at::Tensor& scale) {
  const int64_t rows = codes.size(0), step = std::max<int64_t>(1, kSlice / codes.size(1));
  for (int64_t begin = 0; begin < rows; begin += step) {
    const at::Tensor part = codes.slice(0, begin, begin + step).to(at::kDouble).add(middle);
    const at::Tensor scales = scale.slice(0, begin, begin + step).to(at::kDouble).unsqueeze(-1);
    if (!is_exact(part.reshape({part.size(0), scale.size(1), -1}) * scales, scale.scalar_type()))
      return false;
  }
  return true;
}

NamedTensors affine_tensors(const QuantizedWeights& layer) {
  const int bits = mlx_bits(layer.weight);
  const int64_t group = group_of(plan_of(layer)), middle = int64_t{1} << (bits - 1);
  const at::Tensor scale = per_group(as_numbers(layer.scale, layer.weight.scale), layer, group);
  const at::Tensor zero = layer.zero_point ? per_group(*layer.zero_point, layer, group)
                                           : at::zeros_like(scale, at::kChar);
  const at::Tensor biases = scale.to(at::kDouble) * zero.to(at::kDouble).add(middle).neg();
  if (!is_exact(biases, scale.scalar_type()) || !has_exact_products(layer.codes, middle, scale))
    throw InvalidArgument("MLX computes scale * code + bias in the dtype of the scales, " +
                          std::string(name_of(scale.scalar_type())) + ", in which those of " +
                          layer.name + " are not exact; export in float32.");
  return {{layer.name + ".weight", pack(layer.codes, bits).view(at::kUInt32)},
          {layer.name + ".scales", scale.contiguous()},
          {layer.name + ".biases", biases.to(scale.scalar_type())}};
}

NamedTensors float_tensors(const QuantizedWeights& layer) {
  const at::Tensor bytes = layer.weight.grid == Grid::e2m1
                               ? packed_nibbles(layer.codes, layer.weight.grid)
                               : layer.codes.view(at::kByte);
  return {{layer.name + ".weight", bytes.contiguous().view(at::kUInt32)},
          {layer.name + ".scales", scale_bytes(layer)}};
}

std::string refusal_of_scales(const QuantSpec& spec) {
  if (spec.is_float())
    return "its floats are mxfp4, mxfp8_e4m3, and fp4_e2m1 in groups of 16 under scale_dtype e4m3, "
           "which is MLX's nvfp4 and has no outer scale, but there is " +
           describe(spec);
  if (spec.is_named() || spec.has_offset() ||
      !(spec.scale.is_dtype() || is_power_of_two(spec.scale.code)))
    return "its integers are under scales in float32, bfloat16, float16 or powers of two, but "
           "there "
           "is " +
           describe(spec);
  return "";
}

}  // namespace

int64_t mlx_row_bits(const QuantSpec& spec, const std::optional<QuantSpec>&, int64_t count) {
  return count * mlx_bits(spec);
}

int64_t mlx_grid_bits(const QuantSpec& spec, int64_t cols, int64_t scale_bits) {
  const int64_t group = group_of({"", cols, 1, spec});
  const int64_t groups = group == 0 ? 1 : cols / group;  // of what it refuses, nothing is written
  return groups * (!is_affine(spec) ? 8 : 2 * (spec.scale.is_dtype() ? scale_bits : 16));
}

int mlx_bits(const QuantSpec& spec) { return spec.bits == 7 ? 8 : spec.bits; }

std::string mlx_refusal(const LayerPlan& layer) {
  const QuantSpec& weight = *layer.weight;
  if (layer.input) return "inputs are rounded, for which it has no place";
  if (is_affine(weight)) {
    if (const std::string why = refusal_of_scales(weight); !why.empty()) return why;
    if (group_of(layer) == 0)
      return "its groups have 32, 64 or 128 columns, of which none divides both the blocks of a "
             "scale and the " +
             std::to_string(layer.in_features) + " columns";
  } else if (layer.in_features % weight.group_size != 0) {
    return "groups of " + std::to_string(weight.group_size) + " must divide the columns, but " +
           "there are " + std::to_string(layer.in_features);
  }
  return "";
}

NamedTensors mlx_tensors(const QuantizedWeights& layer) {
  return is_affine(layer.weight) ? affine_tensors(layer) : float_tensors(layer);
}

Documents mlx_documents(const CheckpointPlan& plan) {
  std::map<std::string, int64_t> elements;
  std::string most;
  json layers = json::object();
  for (const LayerPlan& layer : plan.layers) {
    const json entry = entry_of(layer);
    layers[layer.name] = entry;
    const std::string text = entry.dump();
    elements[text] += layer.in_features * layer.out_features;
    if (most.empty() || elements[text] > elements[most]) most = text;
  }
  json config = json::parse(most);
  config.update(layers);
  for (const std::string& name : plan.ignore) config[name] = false;
  return {{"config.json", config.dump()}};
}

}  // namespace qat
