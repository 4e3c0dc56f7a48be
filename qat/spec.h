#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/ops/qparams.h"
#include "qat/ops/quantizer.h"

namespace qat {

enum class Granularity { tensor, channel, token, group, block, head };

// Where the scale of a block comes from. A recipe's `scale` says it, and it decides what operators
// are told to do (ops/quantizer.h):
//
//            `scale`   Quantizer::Mode                    found by
//   minmax   minmax    minmax; fixed for observed inputs  choose_qparams "minmax", an observer
//   absmean  absmean   absmean                            choose_qparams "absmean"
//   fixed    mse       fixed                              the method of `initialize`, an observer
//   learned  learned   learned                            likewise, to begin with
//
// A method that only searches finds it by choose_qparams, "minmax" for rtn and "mse" for mse; clip
// and gptq choose scales together with codes (recipe/initialize.h).
enum class Range {
  minmax,   // the block's smallest and largest element, found anew in every forward
  absmean,  // the block's mean magnitude, found anew likewise: of weights that are -1, 0 and 1
  fixed,    // searched for when bits change, and kept in between; spelled "mse", the usual search
  learned,  // a parameter, trained with the weights (LSQ)
};

// Where the range of an input whose scale is fixed comes from; numerics.md (24) to (27).
enum class ObserverKind {
  minmax,          // everything that was seen
  moving_average,  // the ends of the batches, averaged
  percentile,      // all but a share of what was seen
  mse,             // what is rounded with the least squared error
  entropy,         // what is rounded with the least KL between the distributions
};

// Whether a range of this kind goes on following the inputs while training; the others are searched
// once, on calibration data.
QAT_API bool follows(ObserverKind kind);

struct QAT_API ObserverSpec {
  ObserverKind kind = ObserverKind::minmax;
  double percentile = 99.99;         // of magnitudes, or of each side on an asymmetric grid
  double averaging_constant = 0.01;  // share of a batch in the moving average
  bool operator==(const ObserverSpec& other) const = default;
};

// What the scales of a tensor are stored in, and its offsets, where it has them.
struct QAT_API ScaleSpec {
  ScaleCode code = ScaleCode::bfloat16;
  // Rows and columns whose scales are codes times one outer scale, -1 for a whole axis; 0: there is
  // no outer scale.
  std::array<int64_t, 2> outer_block{0, 0};
  c10::ScalarType outer_dtype = c10::ScalarType::Float;

  bool has_outer() const { return outer_block[0] != 0; }
  // Whether a scale is a number in float32, bfloat16 or float16.
  bool is_dtype() const { return !has_outer() && dtype_of(code).has_value(); }
  bool operator==(const ScaleSpec& other) const = default;
};

// How one tensor of a layer is quantized: a plain value. `bits` is the width that is exported, of a
// float the one of its name; a schedule may train with more.
struct QAT_API QuantSpec {
  int bits = 8;
  Grid grid = Grid::narrow;
  Granularity granularity = Granularity::channel;
  int64_t group_size = 0;              // columns, for Granularity::group
  std::array<int64_t, 2> block{0, 0};  // rows and columns, for Granularity::block
  Range range = Range::minmax;
  ScaleSpec scale;
  bool dynamic = false;   // inputs: a scale per call rather than a calibrated one
  ObserverSpec observer;  // inputs that are not dynamic

  bool is_float() const { return qat::is_float(grid); }
  // Whether its levels have a width of their own, as a float's have.
  bool is_named() const { return qat::is_named(grid); }
  bool is_float8() const { return qat::is_float8(grid); }
  bool has_offset() const { return grid == Grid::offset; }
  // Whether its weight may have any of the widths of integers instead: integer levels under scales
  // of one level.
  bool takes_widths() const { return !is_named() && !has_offset() && scale.is_dtype(); }
  // Whether a weight's scales are found in every forward, so that there is nothing to keep.
  bool finds_scale() const { return range == Range::minmax || range == Range::absmean; }
  // Whether the levels are -1, 0 and 1, under scales that are numbers.
  bool ternary() const { return grid == Grid::narrow && bits == 2 && scale.is_dtype(); }
  // Whether it has neither zero points nor offsets.
  bool symmetric() const { return grid != Grid::asymmetric && !has_offset(); }
  bool operator==(const QuantSpec& other) const = default;
};

// The block shape that the operators take (ops/blocks.h).
QAT_API std::array<int64_t, 2> block_shape(const QuantSpec& spec);

// Whether the scales of a row come from that row alone.
QAT_API bool scales_by_row(const QuantSpec& spec);

// The number of blocks of a matrix [rows, cols] under `spec`.
QAT_API int64_t block_count(const QuantSpec& spec, int64_t rows, int64_t cols);

// The number of outer scales of a matrix [rows, cols], 0 without any.
QAT_API int64_t outer_block_count(const QuantSpec& spec, int64_t rows, int64_t cols);

// The grid at `bits`, which a schedule may set above spec.bits: a float's at its own width, and
// narrow integers at others.
QAT_API Grid grid_at(const QuantSpec& spec, int bits);

// The levels of that grid.
QAT_API Levels quant_range(const QuantSpec& spec, int bits);

// What the operators are told of `spec` at `bits`. `elements`: how many numbers share one scale,
// for the factor on the gradients of learned ones, numerics.md (11).
QAT_API Quantizer quantizer_of(const QuantSpec& spec, int bits, double elements);

// The same whatever the range of `spec`: to find parameters, or for parameters that are given.
QAT_API Quantizer quantizer_of(const QuantSpec& spec, int bits, Quantizer::Mode mode);

// The same for the weight of a layer, and for its input, of which a token's features count.
QAT_API Quantizer weight_quantizer_of(const QuantSpec& spec, int bits, int64_t rows, int64_t cols);
QAT_API Quantizer input_quantizer_of(const QuantSpec& spec, int bits, int64_t features);

// "int4", "fp8_e4m3" and the like.
QAT_API std::string dtype_name(const QuantSpec& spec);

// "bfloat16", "e8m0_floor", "e4m3*float32" and the like.
QAT_API std::string scale_name(const ScaleSpec& scale);

// One line, such as "int4 group 128 narrow, learned scale in bfloat16".
QAT_API std::string describe(const QuantSpec& spec);

// Names as recipes spell them; the parsers throw std::invalid_argument with the allowed ones.
QAT_API const char* name_of(Granularity granularity);
QAT_API const char* name_of(Range range);
QAT_API Range parse_range(const std::string& name);
QAT_API const char* name_of(ObserverKind kind);
// Throws std::invalid_argument with the allowed names.
QAT_API ObserverKind parse_observer(const std::string& name);
QAT_API Granularity parse_granularity(const std::string& name);
QAT_API const char* name_of(c10::ScalarType dtype);
QAT_API c10::ScalarType parse_dtype(const std::string& name);

}  // namespace qat
