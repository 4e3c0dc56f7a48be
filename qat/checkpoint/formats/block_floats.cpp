#include "qat/checkpoint/formats/block_floats.h"

#include <ATen/Functions.h>

#include "qat/checkpoint/formats/minifloat.h"
#include "qat/recipe/presets.h"

namespace qat {

std::string block_float_name(const QuantSpec& spec) {
  const Preset* preset = spec.is_float() ? preset_of(spec) : nullptr;
  return preset ? preset->name : "";
}

std::string weight_float_name(const LayerPlan& layer) { return block_float_name(*layer.weight); }

std::string input_float_name(const LayerPlan& layer) {
  return layer.input ? block_float_name(*layer.input) : "";
}

at::Tensor packed_nibbles(const at::Tensor& codes, Grid grid) {
  const at::Tensor pairs = minifloat_bits(codes, grid).reshape({codes.size(0), -1, 2});
  return pairs.select(2, 0).bitwise_or(pairs.select(2, 1).bitwise_left_shift(4));
}

at::Tensor packed_sextets(const at::Tensor& codes, Grid grid) {
  const at::Tensor bits = minifloat_bits(codes, grid).to(at::kInt).reshape({codes.size(0), -1, 4});
  at::Tensor word = bits.select(2, 0);
  for (int64_t i = 1; i < 4; ++i)
    word = word.bitwise_or(bits.select(2, i).bitwise_left_shift(6 * i));
  const at::Tensor bytes =
      at::stack({word, word.bitwise_right_shift(8), word.bitwise_right_shift(16)}, -1);
  return bytes.bitwise_and(255).to(at::kByte).reshape({codes.size(0), -1});
}

at::Tensor scale_bytes(const QuantizedWeights& layer) {
  return layer.scale.contiguous().view(at::kByte);
}

}  // namespace qat
