#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "qat/artifact.h"
#include "qat/checkpoint/safetensors.h"

namespace qat {

// Takes the tensors of one layer out of those of a checkpoint in the format safetensors, and checks
// them. `entry`: what the configuration says of the layer. Throws FileError, naming folder, layer and
// tensor, for one that is missing or is not as the entry has it.
QuantizedWeights read_layer(const std::filesystem::path& folder, const std::string& name,
                            const nlohmann::json& entry, NamedTensors& tensors);

}  // namespace qat
