#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "qat/ops/api.h"

namespace qat::solvers {

// One width that a layer (or a group of layers that must share it) could have.
struct QAT_API WidthOption {
  int bits;
  double loss;   // measured, any unit
  int64_t size;  // bits that a checkpoint would spend on it
};

// Of each layer one option, so that the losses are least in sum while the sizes stay within
// `budget`: a multiple-choice knapsack, exact where the sizes have a common unit of which the
// budget holds at most 65536; else solved over `steps` equal parts of the budget, each size rounded
// up, so that the budget is never exceeded. Returns an index a layer. Throws std::invalid_argument
// when a layer has no option or more than 256, or when the smallest options together exceed the
// budget.
QAT_API std::vector<std::size_t> allocate_widths(
    const std::vector<std::vector<WidthOption>>& layers, int64_t budget, int64_t steps = 4096);

}  // namespace qat::solvers
