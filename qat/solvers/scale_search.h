#pragma once

#include <stdexcept>
#include <string>

#include "qat/error.h"
namespace qat {

// How the scale of a block is chosen: as choose_qparams (ops/choose_qparams.h) has it.
enum class ScaleSearch {
  minmax,  // from its range
  mse,     // for the least squared error
};

constexpr const char* name_of(ScaleSearch search) {
  return search == ScaleSearch::minmax ? "minmax" : "mse";
}

// Throws std::invalid_argument with the allowed names.
inline ScaleSearch parse_scale_search(const std::string& name) {
  for (const auto search : {ScaleSearch::minmax, ScaleSearch::mse})
    if (name == name_of(search)) return search;
  throw InvalidArgument("scale_search must be minmax or mse, but is " + name + ".");
}

}  // namespace qat
