#include "qat/checkpoint/formats/table.h"

#include <ATen/Functions.h>

#include <vector>

#include "qat/ops/affine.h"

namespace qat {
namespace {

at::Tensor table() {
  std::vector<int> levels;
  for (int code = 0; code < kTableSize; ++code)
    levels.push_back(static_cast<int>(table_level(code)));
  return at::tensor(levels, at::kChar);
}

}  // namespace

at::Tensor table_places(const at::Tensor& codes) {
  return at::searchsorted(table().to(codes.device()), codes.contiguous()).to(at::kByte);
}

at::Tensor table_codes(const at::Tensor& places) {
  return table().to(places.device()).index({places.to(at::kLong)});
}

}  // namespace qat
