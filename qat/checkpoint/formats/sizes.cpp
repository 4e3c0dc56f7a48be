#include "qat/checkpoint/formats/sizes.h"

#include <cmath>

#include "qat/checkpoint/formats/format.h"
#include "qat/recipe/weight_types.h"

namespace qat {
namespace {

using Input = std::optional<QuantSpec>;

// More than it takes to store codes [rows, cols] and zero points, `lines` columns of them, as
// artifact.h counts it.
int64_t more_bits(const Format& format, const QuantSpec& spec, const Input& input, int64_t rows,
                  int64_t cols, int64_t lines, int64_t column) {
  const auto more = [&](int64_t count) {
    return format.row_bits(spec, input, count) - count * stored_bits(spec);
  };
  return rows * more(cols) + lines * more(column);
}

double bits_in_blocks(const Format& format, const QuantSpec& spec, int64_t columns) {
  return format.bits_in_blocks ? format.bits_in_blocks(spec, columns) : 0.0;
}

}  // namespace

int64_t row_of_stored_bits(const QuantSpec& weight, const Input&, int64_t count) {
  return count * stored_bits(weight);
}

int64_t row_up_to_four(const QuantSpec& spec, const Input&, int64_t count) {
  return count * (spec.bits <= 4 ? spec.bits : stored_bits(spec));
}

int64_t scales_and_zeros(const QuantSpec& spec, int64_t cols, int64_t scale_bits) {
  return block_count(spec, 1, cols) * (scale_bits + row_up_to_four(spec, {}, 1));
}

double bits_per_weight_in(const Format& format, const QuantizedWeights& layer) {
  const int64_t rows = layer.codes.size(0), cols = layer.codes.size(-1);
  const double bits = bits_in_blocks(format, layer.weight, cols);
  if (bits != 0.0) return bits;
  if (format.grid_bits) {
    const int64_t scale_bits = 8 * static_cast<int64_t>(layer.scale.element_size());
    const int64_t row = format.row_bits(layer.weight, layer.input, cols) +
                        format.grid_bits(layer.weight, cols, scale_bits);
    return static_cast<double>(row) / static_cast<double>(cols);
  }
  const int64_t lines = layer.zero_point ? layer.zero_point->size(1) : 0;
  const int64_t column = layer.zero_point ? layer.zero_point->size(0) : 0;
  const int64_t more = more_bits(format, layer.weight, layer.input, rows, cols, lines, column);
  return bits_per_weight(layer) + static_cast<double>(more) / static_cast<double>(rows * cols);
}

int64_t size_of_weight_in(const Format& format, const QuantSpec& spec, int64_t rows, int64_t cols,
                          int64_t scale_bits, const Input& input) {
  const double bits = bits_in_blocks(format, spec, cols);
  if (bits != 0.0) return std::llround(bits * static_cast<double>(rows * cols));
  if (format.grid_bits) {
    const int64_t scale = scale_bits != 0 ? scale_bits : bits_of_scale(spec.scale.code);
    return rows * (format.row_bits(spec, input, cols) + format.grid_bits(spec, cols, scale));
  }
  const bool zero_points = !spec.symmetric() && !spec.has_offset();
  const int64_t lines = zero_points ? block_count(spec, 1, cols) : 0;
  const int64_t column = zero_points ? block_count(spec, rows, cols) / lines : 0;
  return size_of_weight(spec, rows, cols, scale_bits) +
         more_bits(format, spec, input, rows, cols, lines, column);
}

}  // namespace qat
