#include "qat/checkpoint/formats/gguf_k.h"

#include <ATen/Functions.h>

#include "qat/checkpoint/formats/gguf_fields.h"
#include "qat/checkpoint/formats/table.h"

namespace qat {
namespace {

constexpr int64_t kSuper = 256;

// Codes of scales and offsets, by super-block: uint8 [out, in / 256, groups].
at::Tensor by_super_block(const at::Tensor& codes, int64_t blocks) {
  return codes.reshape({codes.size(0), blocks, -1});
}

at::Tensor low_bits(const at::Tensor& values, int bits) {
  return values.bitwise_and((1 << bits) - 1);
}
at::Tensor above(const at::Tensor& values, int bits) { return values.bitwise_right_shift(bits); }
at::Tensor raised(const at::Tensor& values, int bits) { return values.bitwise_left_shift(bits); }

// Eight scales and eight offsets of 6 bits in 12 bytes: the first four of each in a byte of their
// own, whose upper bits hold those of the last four, and the rest of these in halves of a byte.
at::Tensor packed_pairs(const at::Tensor& scale, const at::Tensor& offset) {
  const auto first = [](const at::Tensor& all) { return all.slice(2, 0, 4); };
  const auto last = [](const at::Tensor& all) { return all.slice(2, 4, 8); };
  const auto with_upper = [&](const at::Tensor& all) {
    return first(all).bitwise_or(raised(above(last(all), 4), 6));
  };
  return at::cat({with_upper(scale), with_upper(offset),
                  low_bits(last(scale), 4).bitwise_or(raised(low_bits(last(offset), 4), 4))},
                 -1);
}

// Sixteen scales of 6 bits in 12 bytes: the lower four bits of the first eight, and of the last
// eight, in halves of a byte; the upper two of four in each of the rest.
at::Tensor packed_sixteen(const at::Tensor& scale) {
  const at::Tensor low = low_bits(scale, 4), high = above(scale, 4);
  at::Tensor rest = high.slice(2, 0, 4);
  for (int64_t i = 1; i < 4; ++i)
    rest = rest.bitwise_or(raised(high.slice(2, 4 * i, 4 * i + 4), static_cast<int>(2 * i)));
  return at::cat({low.slice(2, 0, 8).bitwise_or(raised(low.slice(2, 8, 16), 4)), rest}, -1);
}

// What the writers take of a layer.
struct SuperBlocks {
  at::Tensor codes;   // uint8 [out, in], from 0
  at::Tensor scale;   // uint8 [out, in / 256, groups]; of scales with a sign the bits of int8
  at::Tensor offset;  // likewise, how far down from 0; undefined without
  at::Tensor d, dmin;

  at::Tensor of_codes(const at::Tensor& part, int64_t side, int bits) const {
    return fields(part, kSuper, side, bits);
  }
};

SuperBlocks super_blocks(const QuantizedWeights& layer) {
  const int64_t blocks = layer.codes.size(1) / kSuper;
  SuperBlocks found;
  const int lowest = layer.offset ? 0 : 1 << (layer.weight.bits - 1);
  found.codes = layer.weight.grid == Grid::iq4_nl ? table_places(layer.codes)
                                                  : layer.codes.add(lowest).view(at::kByte);
  found.scale = by_super_block(layer.scale.contiguous().view(at::kByte), blocks);
  found.d = bytes_of_halves(layer.outer_scale->to(at::kHalf));
  if (!layer.offset) return found;
  found.offset = by_super_block(layer.offset->neg().view(at::kByte), blocks);
  found.dmin = bytes_of_halves(layer.outer_offset->to(at::kHalf));
  return found;
}

std::vector<at::Tensor> q2_k(const SuperBlocks& from) {
  return {from.scale.bitwise_or(raised(from.offset, 4)), from.of_codes(from.codes, 128, 2), from.d,
          from.dmin};
}

std::vector<at::Tensor> q3_k(const SuperBlocks& from) {
  const at::Tensor scale = low_bits(from.scale.add(32), 6);  // -31 ... 31 as 1 ... 63
  return {from.of_codes(above(from.codes, 2), 256, 1),
          from.of_codes(low_bits(from.codes, 2), 128, 2), packed_sixteen(scale), from.d};
}

std::vector<at::Tensor> q4_k(const SuperBlocks& from) {
  return {from.d, from.dmin, packed_pairs(from.scale, from.offset),
          from.of_codes(from.codes, 64, 4)};
}

std::vector<at::Tensor> q5_k(const SuperBlocks& from) {
  return {from.d, from.dmin, packed_pairs(from.scale, from.offset),
          from.of_codes(above(from.codes, 4), 256, 1),
          from.of_codes(low_bits(from.codes, 4), 64, 4)};
}

std::vector<at::Tensor> q6_k(const SuperBlocks& from) {
  return {from.of_codes(low_bits(from.codes, 4), 128, 4),
          from.of_codes(above(from.codes, 4), 128, 2), from.scale, from.d};
}

std::vector<at::Tensor> iq4_xs(const SuperBlocks& from) {
  const at::Tensor scale = low_bits(from.scale.add(32), 6);  // -31 ... 31 as 1 ... 63
  const auto side_by_side = [](const at::Tensor& values, int bits) {
    return fields(values.flatten(1), 8, 8 / bits, bits);
  };
  return {from.d, side_by_side(above(scale, 4), 2), side_by_side(low_bits(scale, 4), 4),
          from.of_codes(from.codes, 32, 4)};
}

using Writer = std::vector<at::Tensor> (*)(const SuperBlocks&);

Writer writer_of(const std::string& type) {
  return type == "Q2_K"     ? &q2_k
         : type == "Q3_K"   ? &q3_k
         : type == "Q4_K"   ? &q4_k
         : type == "Q5_K"   ? &q5_k
         : type == "Q6_K"   ? &q6_k
         : type == "IQ4_XS" ? &iq4_xs
                            : nullptr;
}

}  // namespace

bool is_k_quant(const std::string& type) { return writer_of(type) != nullptr; }

at::Tensor k_quant_blocks(const QuantizedWeights& layer, const std::string& type) {
  return rows_of_blocks(writer_of(type)(super_blocks(layer)));
}

}  // namespace qat
