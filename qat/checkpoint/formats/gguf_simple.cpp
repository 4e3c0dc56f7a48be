#include "qat/checkpoint/formats/gguf_simple.h"

#include <ATen/Functions.h>

#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/gguf_fields.h"
#include "qat/checkpoint/formats/table.h"
#include "qat/error.h"

namespace qat {
namespace {

// What a block's lowest level stands for, [out, blocks] in float16.
at::Tensor least_level(const QuantizedWeights& layer, const at::Tensor& scale) {
  if (layer.offset) return per_group(*layer.offset, layer, kGgufBlock);
  const at::Tensor zero = per_group(*layer.zero_point, layer, kGgufBlock);
  const at::Tensor exact = scale.to(at::kFloat).mul(zero.to(at::kFloat).add(8).neg());
  const at::Tensor stored = exact.to(at::kHalf);
  const int64_t bad = stored.to(at::kFloat).ne(exact).sum().item<int64_t>();
  if (bad != 0)
    throw InvalidArgument("gguf cannot hold " + layer.name +
                          ", because Q4_1 stores the least level of a block as a "
                          "float16, which " +
                          std::to_string(bad) + " of " + std::to_string(exact.numel()) +
                          " are not; train with scale_dtype: float16, which makes them so.");
  return stored;
}

// Scale, where `shifts` the least level, where there are five bits the fifth ones, and nibbles.
at::Tensor nibbles(const QuantizedWeights& layer, const at::Tensor& scale, int bits, bool shifts) {
  std::vector<at::Tensor> parts{bytes_of_halves(scale)};
  if (shifts) parts.push_back(bytes_of_halves(least_level(layer, scale)));
  const int64_t lowest = layer.offset ? 0 : 1 << (bits - 1);
  const at::Tensor codes = layer.codes.add(lowest).to(at::kByte);
  if (bits == 5) parts.push_back(fields(codes.bitwise_right_shift(4), kGgufBlock, 8, 1));
  parts.push_back(fields(codes.bitwise_and(15), kGgufBlock, kGgufBlock, 4));
  return rows_of_blocks(parts);
}

}  // namespace

int64_t simple_block(const std::string& type) {
  return type == "TQ2_0" ? 256 : type == "Q2_0" ? 64 : kGgufBlock;
}

at::Tensor simple_blocks(const QuantizedWeights& layer, const std::string& type) {
  const int64_t block = simple_block(type), rows = layer.codes.size(0);
  const at::Tensor scale = per_group(layer.scale, layer, block);
  if (type == "Q8_0")
    return rows_of_blocks({bytes_of_halves(scale),
                           layer.codes.reshape({rows, -1, block}).contiguous().view(at::kByte)});
  if (type == "TQ2_0")
    return rows_of_blocks(
        {fields(layer.codes.add(1).to(at::kByte), block, 128, 2), bytes_of_halves(scale)});
  // Its levels are -1 ... 2 times d, and ours -2 ... 1 times the scale.
  if (type == "Q2_0")
    return rows_of_blocks({bytes_of_halves(scale.neg()),
                           fields(layer.codes.neg().add(1).to(at::kByte), block, 4, 2)});
  if (type == "IQ4_NL")
    return rows_of_blocks(
        {bytes_of_halves(scale), fields(table_places(layer.codes), block, block, 4)});
  const bool five = type == "Q5_0" || type == "Q5_1";
  return nibbles(layer, scale, five ? 5 : 4, type == "Q4_1" || type == "Q5_1");
}

}  // namespace qat
