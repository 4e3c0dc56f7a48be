#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "qat/ops/api.h"
#include "qat/ops/qparams.h"

namespace qat {

// How one tensor is quantized: a plain value that operators take as one text, such as
//
//   minmax int4 narrow 1x32 bfloat16             the scale of each block is found from its range
//   absmean int2 narrow 1x256 float16            -1, 0 and 1; the scale is the mean magnitude (9b)
//   minmax fp4_e2m1 1x32 e8m0_floor              levels of a float, a power of two as scale
//   minmax fp4_e2m1 1x16 e4m3*float32@-1x-1      scales that are E4M3 codes times an outer float32 one,
//                                                of which there is one per -1x-1
//   fixed int8 asymmetric -1x-1 float32          scale and zero point are given
//   learned int4 full 1x128 bfloat16 0.03125     given and trained; the number multiplies their
//                                                gradients (LSQ)
//
// in which -1 stands for a whole axis. An empty text leaves the tensor as it is.
struct QAT_API Quantizer {
  // What its operators are called with; a tensor that is not there is none. `outer_scale`: of those
  // that have one, to be shared with other tensors.
  struct Parameters {
    std::optional<at::Tensor> scale;
    std::optional<at::Tensor> zero_point;
    std::optional<at::Tensor> outer_scale;
  };

  enum class Mode : int8_t { none, minmax, absmean, fixed, learned };

  Mode mode = Mode::none;
  int bits = 8;  // of whole levels; those that are named have their own
  Grid grid = Grid::narrow;
  std::array<int64_t, 2> block{-1, -1};
  ScaleCode scale_code = ScaleCode::float32;
  std::array<int64_t, 2> outer_block{0, 0};  // no outer scale
  c10::ScalarType outer_dtype = c10::ScalarType::Float;
  double gradient_scale = 1.0;

  // Raises ValueError for a text of another form. parse(q.text()) is q.
  static Quantizer parse(std::string_view text);
  std::string text() const;

  bool operator==(const Quantizer& other) const = default;

  bool active() const { return mode != Mode::none; }
  // Whether scales are found from the tensor, in every call.
  bool finds() const { return mode == Mode::minmax || mode == Mode::absmean; }
  // How, as choose_qparams names it.
  const char* finder() const { return mode == Mode::absmean ? "absmean" : "minmax"; }
  bool has_outer_scale() const { return outer_block[0] != 0; }
  bool has_offset() const { return grid == Grid::offset; }
  // Whether it lays zero points or offsets; those of other grids are 0.
  bool shifts() const { return grid == Grid::asymmetric || has_offset(); }
  // Of zero points, or offsets, that are found or stored.
  c10::ScalarType zero_dtype() const {
    return has_offset() ? c10::ScalarType::Float : c10::ScalarType::Char;
  }
  Levels levels() const { return levels_of(grid, bits); }
  // Whether the straight-through gradient is the identity: nothing is ever clipped, or as (9b) has it.
  bool never_clips() const {
    return mode == Mode::absmean || (mode == Mode::minmax && qat::never_clips(grid, scale_code));
  }
  // Whether a minmax one takes the better of two scales, (9a).
  bool takes_better() const { return scale_code == ScaleCode::e4m3_four_over_six; }
  // Whether (7b) holds scales to 7 bits.
  bool exact_offsets() const {
    return grid == Grid::asymmetric && has_exact_offsets(levels(), scale_code);
  }

  struct Result {
    at::Tensor values;      // in kept memory (kept_memory.h)
    at::Tensor scale;       // what a quantizer that finds scales found; else undefined
    at::Tensor zero_point;  // likewise
  };
  // fake_quantize.h: the rounded tensor in `dtype`, which is that of x or, for float32 x, a half one.
  Result operator()(const at::Tensor& x, const Parameters& parameters, at::ScalarType dtype) const;

  // encode.h: codes, scale and zero point of x, and the tensor that they stand for.
  bool has_codes() const { return !is_named(grid) && !has_offset(); }
  std::vector<at::Tensor> encoded(const at::Tensor& x, const Parameters& parameters) const;
  at::Tensor decoded(at::TensorList encoded, c10::SymInt cols, at::ScalarType dtype) const;

  // Turns the gradient of the rounded tensor into that of x, in place unless autograd records, and
  // returns those of learned parameters (else empty ones). `found`: the parameters that the
  // forward found, as it returned them; found anew when undefined.
  std::tuple<at::Tensor, at::Tensor> backward_inplace(at::Tensor& grad, const at::Tensor& x,
                                                      const Parameters& parameters,
                                                      const Result& found) const;
};

// Names as the texts, recipes and checkpoints spell them: "narrow", "full", "signed", "asymmetric",
// "offset", "iq4_nl", "fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2".
QAT_API const char* grid_name(Grid grid);
QAT_API Grid parse_grid(const char* op, std::string_view name);
// "float32", "bfloat16", "float16", "e8m0_floor", "e8m0_even", "e8m0_ceil", "e4m3", "int6", "int8",
// "int4", "int6_signed", "e4m3_four_over_six".
QAT_API const char* scale_code_name(ScaleCode code);
// Throws ValueError with the names.
QAT_API ScaleCode parse_scale_code(const char* op, std::string_view name);
QAT_API ScaleCode scale_code_of(c10::ScalarType dtype);
// The dtype of scales that are numbers of it; none for codes.
QAT_API std::optional<c10::ScalarType> dtype_of(ScaleCode code);
// The width of the codes of levels that are named, such as a float's; 0 for others.
QAT_API int named_bits(Grid grid);

}  // namespace qat
