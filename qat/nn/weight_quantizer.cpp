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
  if (spec.range == Range::minmax) return;
  const int64_t rows = block_count(spec, rows_, 1), blocks = block_count(spec, rows_, cols_);
  const auto options = weight.options().dtype(at::kFloat).requires_grad(false);
  scale_ = at::ones({rows, blocks / rows}, options);
  zero_point_ = at::zeros({rows, blocks / rows}, options.dtype(at::kChar));
  if (keeps_scales) {
    lattice_scale_ = at::zeros_like(scale_);
    lattice_zero_point_ = at::zeros_like(zero_point_);
  }
  if (!learned()) return;
  scale_.requires_grad_(true);
  if (!spec.symmetric()) zero_point_ = zero_point_.to(at::kFloat).requires_grad_(true);
}

std::tuple<at::Tensor, at::Tensor> WeightQuantizer::derived(const at::Tensor& weight,
                                                            ScaleSearch search) const {
  const bool returns =
      lattice_scale_.defined() && bits_ == spec_.bits && lattice_scale_.any().item<bool>();
  if (returns) return {lattice_scale_, lattice_zero_point_};
  return choose_qparams(weight, quantizer_of(spec_, bits_, Quantizer::Mode::minmax).text(),
                        name_of(search));
}

bool WeightQuantizer::set_bits(int bits, const at::Tensor& weight, ScaleSearch search,
                               bool derive) {
  if (bits == bits_) return false;
  bits_ = bits;
  if (bits == kFloat || !scale_.defined() || !derive) return false;
  const at::NoGradGuard no_grad;
  const auto [scale, zero_point] = derived(weight, search);
  scale_.copy_(scale);
  zero_point_.copy_(zero_point);
  return true;
}

void WeightQuantizer::set_qparams(const at::Tensor& scale, const at::Tensor& zero_point) {
  const at::NoGradGuard no_grad;
  scale_.copy_(scale);
  zero_point_.copy_(zero_point);
  if (!lattice_scale_.defined() || bits_ != spec_.bits) return;
  lattice_scale_.copy_(scale);
  lattice_zero_point_.copy_(zero_point);
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
  return {scale_argument(), zero_point_argument(), std::nullopt};
}

std::tuple<at::Tensor, at::Tensor> WeightQuantizer::qparams(const at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  if (spec_.range == Range::minmax) return choose_qparams(weight, quantizer().text(), "minmax");
  if (spec_.range == Range::fixed) return {scale_, zero_point_};
  return round_qparams(scale_.detach(), quantizer().text(), zero_point_argument());
}

at::Tensor WeightQuantizer::rounded(const at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  const at::Tensor master = weight.detach().to(at::kFloat);
  if (bits_ == kFloat) return master;
  return quantizer()(master, parameters(), at::kFloat).values.clone();
}

}  // namespace qat
