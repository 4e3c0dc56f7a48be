#pragma once

#include "qat/spec.h"

namespace qat {

// A weight of `bits` in groups of `size` columns on the full grid.
inline QuantSpec group_spec(int bits, int64_t size) {
  QuantSpec spec;
  spec.bits = bits;
  spec.grid = Grid::full;
  spec.granularity = Granularity::group;
  spec.group_size = size;
  return spec;
}

}  // namespace qat
