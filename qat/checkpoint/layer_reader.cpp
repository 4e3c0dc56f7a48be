#include "qat/checkpoint/layer_reader.h"

#include <ATen/Functions.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qat/checkpoint/formats/minifloat.h"
#include "qat/checkpoint/formats/plain.h"
#include "qat/checkpoint/formats/spec_json.h"
#include "qat/ops/pack.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

using nlohmann::json;

class LayerReader {
 public:
  LayerReader(std::string folder, std::string name, NamedTensors& tensors)
      : folder_(std::move(folder)), name_(std::move(name)), tensors_(tensors) {}

  QuantizedWeights read(const json& entry) {
    if (!entry.is_object())
      throw FileError(folder_ + ": " + name_ + " must be described by an object, but is not.");
    QuantizedWeights layer;
    layer.name = name_;
    layer.weight = spec_of(entry, "weight");
    if (entry.contains("input")) layer.input = spec_of(entry, "input");
    const json shape = entry.value("shape", json());
    if (!shape.is_array() || shape.size() != 2 || !shape[0].is_number_unsigned() ||
        !shape[1].is_number_unsigned())
      refuse("shape", "must be [out, in]");
    const int64_t rows = shape[0], cols = shape[1];
    layer.codes = codes(layer.weight, rows, cols);
    layer.scale = scales("scale", layer.weight, rows, cols);
    if (layer.weight.has_offset()) layer.offset = scales("offset", layer.weight, rows, cols);
    if (layer.weight.scale.has_outer()) {
      layer.outer_scale = outer_scales("outer_scale", layer.weight, rows, cols);
      if (layer.offset) layer.outer_offset = outer_scales("outer_offset", layer.weight, rows, cols);
    }
    if (layer.weight.grid == Grid::asymmetric) {
      layer.zero_point = take("zero_point");
      if (layer.zero_point->sizes() != layer.scale.sizes() ||
          layer.zero_point->scalar_type() != at::kChar)
        refuse("zero_point", "must be int8, shaped like scale");
    }
    if (layer.input && !layer.input->dynamic) {
      layer.input_scale = take_one("input_scale", at::kFloat);
      if (!layer.input->symmetric())
        layer.input_zero_point = take_one("input_zero_point", at::kChar);
    }
    return layer;
  }

 private:
  [[noreturn]] void refuse(const std::string& tensor, const std::string& why) const {
    throw FileError(folder_ + ": " + name_ + "." + tensor + " " + why + ".");
  }

  QuantSpec spec_of(const json& entry, const char* key) const {
    try {
      return spec_from_json(entry.value(key, json()));
    } catch (const std::invalid_argument& error) {
      refuse(key, std::string("must be a spec, but ") + error.what());
    }
  }

  at::Tensor take(const std::string& leaf) {
    const auto node = tensors_.extract(name_ + "." + leaf);
    if (node.empty()) refuse(leaf, "must be in the checkpoint, but is missing");
    return node.mapped();
  }

  at::Tensor take_one(const std::string& leaf, at::ScalarType dtype) {
    const at::Tensor found = take(leaf);
    if (found.numel() != 1 || found.scalar_type() != dtype)
      refuse(leaf, "must be one number in " + std::string(c10::toString(dtype)));
    return found;
  }

  // Of each block, in a dtype of numbers or in that of their codes.
  at::Tensor scales(const char* leaf, const QuantSpec& spec, int64_t rows, int64_t cols) {
    const at::Tensor found = take(leaf);
    const int64_t blocks = block_count(spec, rows, cols);
    if (found.dim() != 2 || found.numel() != blocks || found.size(0) != block_count(spec, rows, 1))
      refuse(leaf, "must have " + std::to_string(blocks) + " elements");
    const at::ScalarType dtype = found.scalar_type();
    if (dtype_of(spec.scale.code)) {
      if (dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16)
        refuse(leaf, "must be float32, float16 or bfloat16");
      return found;
    }
    const at::ScalarType expected = plain_scale_dtype(spec.scale, dtype);
    if (dtype != expected) refuse(leaf, std::string("must be ") + c10::toString(expected));
    return found.view(scale_storage(spec.scale, dtype));
  }

  at::Tensor outer_scales(const char* leaf, const QuantSpec& spec, int64_t rows, int64_t cols) {
    const at::Tensor found = take(leaf);
    const int64_t blocks = outer_block_count(spec, rows, cols);
    if (found.dim() != 2 || found.numel() != blocks ||
        found.size(0) != outer_block_count(spec, rows, 1) ||
        found.scalar_type() != spec.scale.outer_dtype)
      refuse(leaf, "must have " + std::to_string(blocks) + " elements in " +
                       name_of(spec.scale.outer_dtype));
    return found;
  }

  // Whether numbers are those of a float of fewer bits.
  static bool is_of(const at::Tensor& numbers, Grid grid) {
    const at::Tensor magnitudes = numbers.to(at::kFloat).abs();
    if (!at::le(magnitudes, levels_of(grid, named_bits(grid)).max).all().item<bool>()) return false;
    const at::Tensor same = minifloat_of_bits(minifloat_bits(numbers, grid), grid);
    return at::equal(same.to(at::kFloat), numbers.to(at::kFloat));
  }

  at::Tensor codes(const QuantSpec& spec, int64_t rows, int64_t cols) {
    at::Tensor stored = take("codes");
    const Levels range = quant_range(spec, spec.bits);
    if (plain_is_packed(spec)) {
      const int64_t words = packed_words(cols, spec.bits);
      if (stored.scalar_type() != at::kInt || stored.sizes() != at::IntArrayRef({rows, words}))
        refuse("codes",
               "must be int32 [" + std::to_string(rows) + ", " + std::to_string(words) + "]");
      stored = plain_codes(unpack(stored, spec.bits, cols), spec);
    }
    if (stored.sizes() != at::IntArrayRef({rows, cols}))
      refuse("codes", "must be [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
    if (spec.is_float()) {
      const at::ScalarType dtype = code_dtype(spec.grid);
      if (stored.scalar_type() != dtype)
        refuse("codes", std::string("must be ") + c10::toString(dtype));
      if (!spec.is_float8() && !is_of(stored, spec.grid))
        refuse("codes", "must be numbers of " + std::string(grid_name(spec.grid)));
      return stored;
    }
    if (stored.scalar_type() != at::kChar) refuse("codes", "must be int8");
    if (stored.numel() != 0 &&
        (stored.min().item<float>() < range.min || stored.max().item<float>() > range.max))
      refuse("codes", "must be levels of the grid " + std::string(grid_name(spec.grid)));
    return stored;
  }

  std::string folder_, name_;
  NamedTensors& tensors_;
};

}  // namespace

QuantizedWeights read_layer(const std::filesystem::path& folder, const std::string& name,
                            const json& entry, NamedTensors& tensors) {
  return LayerReader(folder.string(), name, tensors).read(entry);
}

}  // namespace qat
