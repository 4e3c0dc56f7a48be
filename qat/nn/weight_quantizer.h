#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "qat/artifact.h"
#include "qat/ops/api.h"
#include "qat/recipe/recipe.h"
#include "qat/solvers/scale_search.h"
#include "qat/spec.h"

namespace qat {

// Fake quantization of a weight as a matrix [rows, cols]: its spec, the width in force, and the
// scale and zero point when they are searched or learned rather than found from the weight itself.
class QAT_API WeightQuantizer {
 public:
  // `keeps_scales`: scales are chosen before training together with codes (GPTQ, AWQ), and a
  // schedule returns to them.
  WeightQuantizer(const QuantSpec& spec, const at::Tensor& weight, bool keeps_scales);

  // Sets the width; kFloat switches off. Scales are derived anew from the master weight, unless
  // `derives` is false: then they were loaded for it. Learned parameters keep their tensors, so an
  // optimizer goes on with them. Returns whether searched or learned scales changed.
  bool set_bits(int bits, const at::Tensor& weight, ScaleSearch search, bool derives = true);
  // What scales and offsets that are chosen for the weight as it is are multiples of, kept where they
  // stay.
  void set_outer_scales(const OuterParameters& outer);
  // Derives them again: under another outer scale.
  void derive(const at::Tensor& weight, ScaleSearch search);
  // Chooses them under `outer`, in place of those that a schedule would return to; `importance` as of
  // choose_qparams.
  void choose(const at::Tensor& weight, ScaleSearch search,
              const std::optional<at::Tensor>& importance, const OuterParameters& outer);
  // Chosen together with the weight, for the width in force and under the outer scales that are kept.
  void set_qparams(const at::Tensor& scale, const at::Tensor& zero_point);

  // How the operators round a weight at the width in force.
  Quantizer quantizer() const { return weight_quantizer_of(spec_, bits_, rows_, cols_); }
  // What the quantizer is called with.
  Quantizer::Parameters parameters() const;
  // Scale float32 and zero point int8 in force, as they are stored.
  std::tuple<at::Tensor, at::Tensor> qparams(const at::Tensor& weight) const;
  // What the scales and offsets in force are multiples of.
  OuterParameters outer_scales(const at::Tensor& weight) const;
  // The outer scale that `weight` needs at `bits` by its range, which no search for scales leaves, and
  // that learned scales in force need: of which layers that share one take the largest
  // (shared_outer_scale.h).
  at::Tensor needed_outer_scale(const at::Tensor& weight, int bits) const;
  at::Tensor needed_outer_scale() const;
  void set_shared_outer_scale(const at::Tensor& outer) { shared_outer_scale_ = outer; }
  // The weight on its grid, float32 [rows, cols].
  at::Tensor rounded(const at::Tensor& weight) const;

  const QuantSpec& spec() const { return spec_; }
  int bits() const { return bits_; }
  bool learned() const { return spec_.range == Range::learned; }
  // Undefined where scales are found from the weight each time.
  const at::Tensor& scale() const { return scale_; }
  const at::Tensor& zero_point() const { return zero_point_; }
  // The scales to which a schedule returns at the exported width; undefined without keeps_scales.
  const at::Tensor& lattice_scale() const { return lattice_scale_; }
  const at::Tensor& lattice_zero_point() const { return lattice_zero_point_; }
  const at::Tensor& lattice_outer_scale() const { return lattice_outer_scale_; }
  const at::Tensor& lattice_outer_offset() const { return lattice_outer_offset_; }
  // Of fixed scales and offsets; undefined where there are none, or where they follow the weight or
  // the learned scales.
  const at::Tensor& outer_scale() const { return outer_scale_; }
  const at::Tensor& outer_offset() const { return outer_offset_; }

 private:
  std::optional<at::Tensor> scale_argument() const;
  std::optional<at::Tensor> zero_point_argument() const;
  std::optional<at::Tensor> shared_outer_scale() const;
  std::tuple<at::Tensor, at::Tensor> chosen(const at::Tensor& weight, ScaleSearch search);
  void assign(const std::tuple<at::Tensor, at::Tensor>& qparams);

  QuantSpec spec_;
  int64_t rows_, cols_;
  int bits_ = kFloat;
  at::Tensor scale_;       // float32
  at::Tensor zero_point_;  // float32 when learned, and offsets; else int8
  at::Tensor outer_scale_, outer_offset_, shared_outer_scale_;
  at::Tensor lattice_scale_, lattice_zero_point_, lattice_outer_scale_, lattice_outer_offset_;
};

}  // namespace qat
