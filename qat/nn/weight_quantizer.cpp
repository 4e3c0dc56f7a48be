#include "qat/nn/weight_quantizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/kept_memory.h"

namespace qat {

WeightQuantizer::WeightQuantizer(const QuantSpec& spec, const at::Tensor& weight, bool keeps_scales)
    : spec_(spec), rows_(weight.size(0)), cols_(weight.size(1)) {
  if (spec.finds_scale()) return;
  const int64_t rows = block_count(spec, rows_, 1), blocks = block_count(spec, rows_, cols_);
  const auto options = weight.options().dtype(at::kFloat).requires_grad(false);
  scale_ = at::ones({rows, blocks / rows}, options);
  zero_point_ =
      at::zeros({rows, blocks / rows}, options.dtype(spec.has_offset() ? at::kFloat : at::kChar));
  if (spec.scale.has_outer() && !learned()) {
    const int64_t outer_rows = outer_block_count(spec, rows_, 1);
    outer_scale_ =
        at::ones({outer_rows, outer_block_count(spec, rows_, cols_) / outer_rows}, options);
    if (spec.has_offset()) outer_offset_ = outer_scale_.clone();
  }
  if (keeps_scales) {
    lattice_scale_ = at::zeros_like(scale_);
    lattice_zero_point_ = at::zeros_like(zero_point_);
    if (outer_scale_.defined()) lattice_outer_scale_ = outer_scale_.clone();
    if (outer_offset_.defined()) lattice_outer_offset_ = outer_offset_.clone();
  }
  if (!learned()) return;
  scale_.requires_grad_(true);
  if (!spec.symmetric()) zero_point_ = zero_point_.to(at::kFloat).requires_grad_(true);
}

void WeightQuantizer::set_outer_scales(const OuterParameters& outer) {
  const at::NoGradGuard no_grad;
  if (outer_scale_.defined()) outer_scale_.copy_(*outer.scale);
  if (outer_offset_.defined()) outer_offset_.copy_(*outer.offset);
}

std::tuple<at::Tensor, at::Tensor> WeightQuantizer::chosen(const at::Tensor& weight,
                                                           ScaleSearch search) {
  const OuterParameters outer =
      outer_parameters(weight, spec_, bits_, {shared_outer_scale(), std::nullopt});
  set_outer_scales(outer);
  return choose_qparams(weight, quantizer_of(spec_, bits_, Quantizer::Mode::minmax).text(),
                        name_of(search), std::nullopt, outer.scale, outer.offset);
}

void WeightQuantizer::assign(const std::tuple<at::Tensor, at::Tensor>& qparams) {
  scale_.copy_(std::get<0>(qparams));
  zero_point_.copy_(std::get<1>(qparams));
}

void WeightQuantizer::derive(const at::Tensor& weight, ScaleSearch search) {
  const at::NoGradGuard no_grad;
  const bool returns =
      lattice_scale_.defined() && bits_ == spec_.bits && lattice_scale_.any().item<bool>();
  if (!returns) return assign(chosen(weight, search));
  assign({lattice_scale_, lattice_zero_point_});
  set_outer_scales({lattice_outer_scale_, lattice_outer_offset_});
}

void WeightQuantizer::choose(const at::Tensor& weight, ScaleSearch search,
                             const std::optional<at::Tensor>& importance,
                             const OuterParameters& outer) {
  const at::NoGradGuard no_grad;
  const auto [scale, zero_point] =
      choose_qparams(weight, quantizer_of(spec_, bits_, Quantizer::Mode::minmax).text(),
                     name_of(search), importance, outer.scale, outer.offset);
  set_qparams(scale, zero_point);
}

bool WeightQuantizer::set_bits(int bits, const at::Tensor& weight, ScaleSearch search,
                               bool derives) {
  if (bits == bits_) return false;
  bits_ = bits;
  if (bits == kFloat || !scale_.defined() || !derives) return false;
  derive(weight, search);
  return true;
}

void WeightQuantizer::set_qparams(const at::Tensor& scale, const at::Tensor& zero_point) {
  const at::NoGradGuard no_grad;
  assign({scale, zero_point});
  if (!lattice_scale_.defined() || bits_ != spec_.bits) return;
  lattice_scale_.copy_(scale);
  lattice_zero_point_.copy_(zero_point);
  if (outer_scale_.defined()) lattice_outer_scale_.copy_(outer_scale_);
  if (outer_offset_.defined()) lattice_outer_offset_.copy_(outer_offset_);
}

std::optional<at::Tensor> WeightQuantizer::scale_argument() const {
  return scale_.defined() ? std::optional(scale_.detach()) : std::nullopt;
}

std::optional<at::Tensor> WeightQuantizer::zero_point_argument() const {
  // A symmetric grid has none to learn.
  if (!zero_point_.defined() || (learned() && spec_.symmetric())) return std::nullopt;
  return zero_point_.detach();
}

Quantizer::Parameters WeightQuantizer::parameters() const {
  return {scale_argument(), zero_point_argument(), shared_outer_scale()};
}

std::optional<at::Tensor> WeightQuantizer::shared_outer_scale() const {
  return shared_outer_scale_.defined() ? std::optional(shared_outer_scale_) : std::nullopt;
}

at::Tensor WeightQuantizer::needed_outer_scale(const at::Tensor& weight, int bits) const {
  const std::string text = quantizer_of(spec_, bits, Quantizer::Mode::minmax).text();
  return std::get<0>(choose_outer_scales(weight, text));
}

at::Tensor WeightQuantizer::needed_outer_scale() const {
  return qat::outer_scales(scale_.detach(), quantizer().text());
}

OuterParameters WeightQuantizer::outer_scales(const at::Tensor& weight) const {
  if (!spec_.scale.has_outer()) return {};
  const at::NoGradGuard no_grad;
  const auto with_offset = [&](const at::Tensor& scale, const at::Tensor& offset) {
    return OuterParameters{scale, spec_.has_offset() ? std::optional(offset) : std::nullopt};
  };
  if (spec_.range == Range::fixed) return with_offset(outer_scale_, outer_offset_);
  const std::string text = quantizer().text();
  if (learned())
    return with_offset(
        shared_outer_scale().value_or(needed_outer_scale()),
        spec_.has_offset() ? qat::outer_scales(zero_point_.detach(), text) : at::Tensor());
  const auto [scale, offset] = choose_outer_scales(weight, text);
  return with_offset(shared_outer_scale().value_or(scale), offset);
}

std::tuple<at::Tensor, at::Tensor> WeightQuantizer::qparams(const at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  if (spec_.finds_scale())
    return choose_qparams(weight, quantizer().text(), quantizer().finder(), std::nullopt,
                          shared_outer_scale());
  if (spec_.range == Range::fixed) return {scale_, zero_point_};
  return round_qparams(scale_.detach(), quantizer().text(), zero_point_argument(),
                       shared_outer_scale());
}

at::Tensor WeightQuantizer::rounded(const at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  const at::Tensor master = weight.detach().to(at::kFloat);
  if (bits_ == kFloat) return master;
  return quantizer()(master, parameters(), at::kFloat).values.clone();
}

}  // namespace qat
