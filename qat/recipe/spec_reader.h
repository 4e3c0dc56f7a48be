#pragma once

#include <optional>
#include <string>

#include "qat/recipe/yaml_section.h"

namespace qat {

enum class TensorRole { weight, input };

// The value of `key` in a rule: a map that describes a QuantSpec, or the word float. `keeps_scales`:
// those of weights are chosen before training, alone or together with codes, and stay or are trained.
Choice read_choice(YamlSection& rule, const std::string& key, TensorRole role,
                   bool keeps_scales = false);

// The key `dtype`, int2 to int8 or one of `floats`: sets bits and the grid of a float, and returns
// whether it is one. `presets`: what else the name may be, for the sentence about a wrong one.
bool read_dtype(YamlSection& section, QuantSpec& spec, const std::vector<Grid>& floats,
                const std::vector<std::string>& presets = {});

// The keys `observer`, `percentile` and `averaging_constant` of a tensor whose scale is found on
// calibration data, and rejects them for a dynamic one.
void read_observer(YamlSection& section, QuantSpec& spec);

// The width that a stage names: int2 to int8, or kFloat; none when the stage does not say.
std::optional<int> read_stage_bits(YamlSection& stage, const std::string& key);

// int2 to int8.
const std::vector<std::string>& integer_dtypes();

// The width of "int2" to "int8"; files a problem about `key` and returns 8 for anything else.
int parse_bits(YamlSection& section, const YAML::Node& node, const std::string& key);

}  // namespace qat
