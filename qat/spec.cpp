#include "qat/spec.h"

#include <c10/core/ScalarType.h>

#include <cmath>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/blocks.h"

namespace qat {

std::array<int64_t, 2> block_shape(const QuantSpec& spec) {
  switch (spec.granularity) {
    case Granularity::tensor:
      return {-1, -1};
    case Granularity::head:
    case Granularity::channel:
    case Granularity::token:
      return {1, -1};
    case Granularity::group:
      return {1, spec.group_size};
    case Granularity::block:
      return spec.block;
  }
  return {-1, -1};
}

bool scales_by_row(const QuantSpec& spec) {
  const int64_t outer_rows = spec.scale.outer_block[0];  // 0: there is no outer scale
  return block_shape(spec)[0] == 1 && (outer_rows == 0 || outer_rows == 1);
}

int64_t block_count(const QuantSpec& spec, int64_t rows, int64_t cols) {
  const auto block = block_shape(spec);
  const BlockLayout layout = make_layout(rows, cols, block[0], block[1]);
  return layout.grid_rows * layout.grid_cols;
}

int64_t outer_block_count(const QuantSpec& spec, int64_t rows, int64_t cols) {
  if (!spec.scale.has_outer()) return 0;
  const auto [height, width] = spec.scale.outer_block;
  const BlockLayout layout = make_layout(rows, cols, height, width);
  return layout.grid_rows * layout.grid_cols;
}

Grid grid_at(const QuantSpec& spec, int bits) {
  return spec.is_named() && bits != spec.bits ? Grid::narrow : spec.grid;
}

Levels quant_range(const QuantSpec& spec, int bits) { return levels_of(grid_at(spec, bits), bits); }

std::string dtype_name(const QuantSpec& spec) {
  return spec.is_named() ? grid_name(spec.grid) : "int" + std::to_string(spec.bits);
}

std::string scale_name(const ScaleSpec& scale) {
  std::string name = scale_code_name(scale.code);
  return scale.has_outer() ? name + "*" + name_of(scale.outer_dtype) : name;
}

std::string describe(const QuantSpec& spec) {
  std::string text = dtype_name(spec) + " " + name_of(spec.granularity);
  if (spec.granularity == Granularity::group) text += " " + std::to_string(spec.group_size);
  if (spec.granularity == Granularity::block)
    text += " " + std::to_string(spec.block[0]) + "x" + std::to_string(spec.block[1]);
  text += spec.is_named() ? ", " : std::string(" ") + grid_name(spec.grid) + ", ";
  const bool observed = spec.range != Range::learned && spec.observer.kind != ObserverKind::minmax;
  text += spec.dynamic ? "dynamic" : observed ? name_of(spec.observer.kind) : name_of(spec.range);
  return text + " scale in " + scale_name(spec.scale);
}

const char* name_of(Granularity granularity) {
  switch (granularity) {
    case Granularity::tensor:
      return "tensor";
    case Granularity::channel:
      return "channel";
    case Granularity::token:
      return "token";
    case Granularity::group:
      return "group";
    case Granularity::block:
      return "block";
    case Granularity::head:
      return "head";
  }
  return "unknown";
}

const char* name_of(Range range) {
  switch (range) {
    case Range::minmax:
      return "minmax";
    case Range::absmean:
      return "absmean";
    case Range::fixed:
      return "mse";
    case Range::learned:
      return "learned";
  }
  return "unknown";
}

const char* name_of(ObserverKind kind) {
  switch (kind) {
    case ObserverKind::minmax:
      return "minmax";
    case ObserverKind::moving_average:
      return "moving_average";
    case ObserverKind::percentile:
      return "percentile";
    case ObserverKind::mse:
      return "mse";
    case ObserverKind::entropy:
      return "entropy";
  }
  return "unknown";
}

ObserverKind parse_observer(const std::string& name) {
  for (const auto kind : {ObserverKind::minmax, ObserverKind::moving_average,
                          ObserverKind::percentile, ObserverKind::mse, ObserverKind::entropy})
    if (name == name_of(kind)) return kind;
  throw InvalidArgument(
      "observer must be minmax, moving_average, percentile, mse or entropy, but is " + name + ".");
}

Range parse_range(const std::string& name) {
  for (const auto value : {Range::minmax, Range::absmean, Range::fixed, Range::learned})
    if (name == name_of(value)) return value;
  throw InvalidArgument("scale must be minmax, absmean, mse or learned, but is " + name + ".");
}

Granularity parse_granularity(const std::string& name) {
  for (const auto value : {Granularity::tensor, Granularity::channel, Granularity::token,
                           Granularity::group, Granularity::block, Granularity::head})
    if (name == name_of(value)) return value;
  throw InvalidArgument(
      "granularity must be tensor, channel, token, group, block or head, but is " + name + ".");
}

bool follows(ObserverKind kind) {
  return kind == ObserverKind::minmax || kind == ObserverKind::moving_average;
}

const char* name_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return "float32";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    case c10::ScalarType::Half:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

c10::ScalarType parse_dtype(const std::string& name) {
  if (name == "float32") return c10::ScalarType::Float;
  if (name == "bfloat16") return c10::ScalarType::BFloat16;
  if (name == "float16") return c10::ScalarType::Half;
  throw InvalidArgument("dtype must be float32, bfloat16 or float16, but is " + name + ".");
}

Quantizer quantizer_of(const QuantSpec& spec, int bits, Quantizer::Mode mode) {
  Quantizer quantizer;
  quantizer.mode = mode;
  quantizer.bits = bits;
  quantizer.grid = grid_at(spec, bits);
  quantizer.block = block_shape(spec);
  quantizer.scale_code = spec.scale.code;
  // What a rule asks of E2M1, it does not ask of the integers of another width.
  if (spec.scale.code == ScaleCode::e4m3_four_over_six && quantizer.grid != Grid::e2m1)
    quantizer.scale_code = ScaleCode::e4m3;
  quantizer.outer_block = spec.scale.outer_block;
  quantizer.outer_dtype = spec.scale.outer_dtype;
  return quantizer;
}

namespace {

Quantizer::Mode mode_of(const QuantSpec& spec, int bits) {
  using Mode = Quantizer::Mode;
  switch (spec.range) {
    case Range::minmax:
      return Mode::minmax;
    case Range::absmean:  // a schedule's wider integers have their range
      return bits == 2 ? Mode::absmean : Mode::minmax;
    case Range::fixed:
      return Mode::fixed;
    case Range::learned:
      return Mode::learned;
  }
  return Mode::none;
}

}  // namespace

Quantizer quantizer_of(const QuantSpec& spec, int bits, double elements) {
  Quantizer quantizer = quantizer_of(spec, bits, mode_of(spec, bits));
  if (spec.range == Range::learned)
    quantizer.gradient_scale =
        1.0 / std::sqrt(elements * static_cast<double>(quant_range(spec, bits).max));
  return quantizer;
}

Quantizer weight_quantizer_of(const QuantSpec& spec, int bits, int64_t rows, int64_t cols) {
  if (bits == 0) return {};
  const auto elements = static_cast<double>(rows * cols);
  return quantizer_of(spec, bits, elements / static_cast<double>(block_count(spec, rows, cols)));
}

Quantizer input_quantizer_of(const QuantSpec& spec, int bits, int64_t features) {
  if (bits == 0) return {};
  Quantizer quantizer = quantizer_of(spec, bits, static_cast<double>(features));
  // The range was observed; under an outer scale, which comes of it, blocks find their own.
  if (!spec.dynamic && !spec.scale.has_outer() && quantizer.mode == Quantizer::Mode::minmax)
    quantizer.mode = Quantizer::Mode::fixed;
  return quantizer;
}

}  // namespace qat
