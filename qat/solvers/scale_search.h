#pragma once

#include <string>

#include "qat/names.h"
#include "qat/ops/api.h"

namespace qat {

// How the scale of a block is chosen: as choose_qparams (ops/choose_qparams.h) has it.
enum class ScaleSearch {
  minmax,  // from its range
  mse,     // for the least squared error
};

// Their names, as recipes spell them.
QAT_API const NameTable<ScaleSearch>& scale_searches();
QAT_API const char* name_of(ScaleSearch search);
// Throws std::invalid_argument with the allowed names.
QAT_API ScaleSearch parse_scale_search(const std::string& name);

}  // namespace qat
