#include "qat/checkpoint/formats/gguf_fields.h"

#include <ATen/Functions.h>

namespace qat {

at::Tensor bytes_of_halves(const at::Tensor& halves) {
  return halves.contiguous().unsqueeze(-1).view(at::kByte);
}

at::Tensor fields(const at::Tensor& values, int64_t block, int64_t side, int bits) {
  const int64_t in_a_byte = 8 / bits;
  const at::Tensor columns = values.reshape({values.size(0), -1, in_a_byte, side / in_a_byte});
  at::Tensor bytes = columns.select(2, 0);
  for (int64_t i = 1; i < in_a_byte; ++i)
    bytes = bytes.bitwise_or(columns.select(2, i).bitwise_left_shift(bits * i));
  return bytes.reshape({values.size(0), values.size(1) / block, block / in_a_byte});
}

at::Tensor rows_of_blocks(const std::vector<at::Tensor>& parts) {
  return at::cat(parts, -1).reshape({parts.front().size(0), -1});
}

}  // namespace qat
