#pragma once

#include <nlohmann/json_fwd.hpp>

#include "qat/spec.h"

namespace qat {

// A spec as checkpoints carry it: what is needed to read codes, not how their scales were found.
nlohmann::json to_json(const QuantSpec& spec);

// Throws std::invalid_argument with what is wrong.
QuantSpec spec_from_json(const nlohmann::json& json);

}  // namespace qat
