#pragma once

// Layers to write, and what formats say of them.

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qat/checkpoint/formats/format.h"
#include "tests/qat/group_spec.h"

namespace qat {

inline at::Tensor int8_codes(std::vector<int> values) {
  return at::tensor(values, at::kInt).to(at::kChar);
}

// Random codes over the whole grid, scales that float16 and bfloat16 hold.
inline QuantizedWeights random_layer(const std::string& name, const QuantSpec& spec, int64_t rows,
                                     int64_t cols) {
  const Levels range = quant_range(spec, spec.bits);
  const auto low = static_cast<int64_t>(range.min), high = static_cast<int64_t>(range.max) + 1;
  const auto [height, width] = block_shape(spec);
  const std::vector<int64_t> grid{height == -1 ? 1 : (rows + height - 1) / height,
                                  width == -1 ? 1 : (cols + width - 1) / width};
  QuantizedWeights layer;
  layer.name = name;
  layer.weight = spec;
  layer.codes = at::randint(low, high, {rows, cols}, at::kInt).to(at::kChar);
  layer.scale = at::randint(1, 64, grid, at::kFloat).div(512.0).to(at::kHalf);
  if (!spec.symmetric()) layer.zero_point = at::randint(low, high, grid, at::kInt).to(at::kChar);
  return layer;
}

inline QuantSpec int8_input(bool dynamic) {
  QuantSpec input;
  input.granularity = dynamic ? Granularity::token : Granularity::tensor;
  input.dynamic = dynamic;
  return input;
}

inline nlohmann::json config_of(const char* format, const std::vector<QuantizedWeights>& layers,
                                const std::vector<std::string>& ignore = {}) {
  CheckpointPlan plan{{}, ignore, {}};
  for (const QuantizedWeights& layer : layers) plan.layers.push_back(plan_of(layer));
  return nlohmann::json::parse(find_format(format).documents(plan).at("config.json"));
}

// What check_format says of the layers; empty when nothing.
inline std::string refusal_of(const char* format, const std::vector<QuantizedWeights>& layers,
                              const std::vector<std::string>& ignore = {}) {
  CheckpointPlan plan{{}, ignore, {}};
  for (const QuantizedWeights& layer : layers) plan.layers.push_back(plan_of(layer));
  try {
    check_format(find_format(format), plan);
    find_format(format).documents(plan);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

}  // namespace qat
