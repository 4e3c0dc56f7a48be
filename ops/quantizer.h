#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "qat/ops/qparams.h"

namespace qat {

// How one tensor is fake quantized: which operator, and its settings. A plain value that is passed
// to operators as one text, such as
//
//   minmax int4 narrow 1x32 bfloat16          the scale of each block is found from its range
//   fixed int8 asymmetric -1x-1 float32       scale and zero point are given
//   learned int4 full 1x128 bfloat16 0.03125  given and trained; the number multiplies their
//                                             gradients (LSQ)
//
// in which -1 stands for a whole axis. An empty text leaves the tensor as it is.
struct Quantizer {
  enum class Mode { none, minmax, fixed, learned };

  Mode mode = Mode::none;
  int bits = 8;
  Grid grid = Grid::narrow;
  std::array<int64_t, 2> block{-1, -1};
  at::ScalarType scale_dtype = at::kFloat;
  double gradient_scale = 1.0;

  // Raises ValueError for a text of another form.
  static Quantizer parse(std::string_view text);
  std::string text() const;

  bool active() const { return mode != Mode::none; }
  // Whether the straight-through gradient is the identity: nothing is ever clipped.
  bool never_clips() const { return mode == Mode::minmax && qat::never_clips(grid, scale_dtype); }

  // What its parameters are called with: learned zero points are float32, given ones int8.
  using Optional = std::optional<at::Tensor>;

  struct Result {
    at::Tensor values;      // in kept memory (kept_memory.h)
    at::Tensor scale;       // as stored; undefined when learned
    at::Tensor zero_point;  // likewise
  };
  // The rounded tensor in `dtype`, which is that of x or, for float32 x, a half one.
  Result operator()(const at::Tensor& x, const Optional& scale, const Optional& zero_point,
                    at::ScalarType dtype) const;

  // Codes, scale and zero point of x as encode.h keeps them, and the tensor that they stand for.
  std::vector<at::Tensor> encoded(const at::Tensor& x, const Optional& scale,
                                  const Optional& zero_point) const;
  at::Tensor decoded(at::TensorList encoded, c10::SymInt cols, at::ScalarType dtype) const;

  // Turns the gradient of the rounded tensor into that of x, in place, and returns those of learned
  // scales and zero points (else empty ones). `found`: the parameters of a minmax quantizer, as the
  // forward returned them; found anew when undefined.
  std::tuple<at::Tensor, at::Tensor> backward_inplace(at::Tensor& grad, const at::Tensor& x,
                                                      const Optional& scale,
                                                      const Optional& zero_point,
                                                      const Result& found) const;
};

}  // namespace qat
