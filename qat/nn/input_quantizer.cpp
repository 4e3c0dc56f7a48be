#include "qat/nn/input_quantizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"

namespace qat {

at::Tensor rounded_input(const at::Tensor& x, const QuantSpec& spec, int bits,
                         const at::Tensor& scale, const std::optional<at::Tensor>& zero_point) {
  using Mode = Quantizer::Mode;
  const bool finds = spec.dynamic || spec.scale.has_outer();
  const auto quantizer = quantizer_of(spec, bits, finds ? Mode::minmax : Mode::fixed);
  if (finds)
    return std::get<0>(
        fake_quantize(x, quantizer.text(), {}, {},
                      spec.dynamic ? std::nullopt : std::optional(scale.view({1, 1}))));
  const bool shifts = zero_point && !spec.symmetric();
  return std::get<0>(
      fake_quantize(x, quantizer.text(), scale.view({1, 1}),
                    shifts ? std::optional(zero_point->view({1, 1})) : std::nullopt));
}

InputQuantizer::InputQuantizer(const QuantSpec& spec, int64_t features, at::Device device)
    : spec_(spec), features_(features), scale_bits_(spec.bits), observer_(spec.observer) {
  if (spec.dynamic) return;
  const auto options = at::TensorOptions(device).dtype(at::kFloat);
  low_ = at::zeros({1, 1}, options);
  high_ = at::zeros({1, 1}, options);
  scale_ = at::ones({1, 1}, options);
  zero_point_ = at::zeros({1, 1}, options.dtype(at::kChar));
  if (!learned()) return;
  scale_.requires_grad_(true);
  if (!spec.symmetric()) zero_point_ = zero_point_.to(at::kFloat).requires_grad_(true);
}

void InputQuantizer::observe(const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  observer_.observe(x);
  if (!observer_.observed()) return;
  ready_ = true;
  take_range();
  if (spec_.range == Range::minmax && !calibrating_) take_scale(observer_);
}

at::Tensor InputQuantizer::operator()(const at::Tensor& x, bool training) {
  if (calibrating_ || (calibrated() && observing_ && training && follows(spec_.observer.kind)))
    observe(x);
  if (calibrating_ || bits_ == kFloat || (calibrated() && !ready_)) return x;
  if (!learned()) return rounded_input(x, spec_, bits_, scale_, zero_point_);
  return std::get<0>(fake_quantize(x, input_quantizer_of(spec_, bits_, features_).text(), scale_,
                                   spec_.symmetric() ? std::nullopt : std::optional(zero_point_)));
}

bool InputQuantizer::set_bits(int bits, bool derive) {
  bits_ = bits;
  if (!calibrated() || bits == kFloat) return false;
  const int before = scale_bits_;
  scale_bits_ = bits;
  if (!derive || before == bits) return false;
  const at::NoGradGuard no_grad;
  Observer range;
  if (spec_.range == Range::minmax) {
    range.restore(low_, high_);
  } else {
    const Levels ends = quant_range(spec_, before);
    const at::Tensor scale = scale_.to(at::kDouble), zero = zero_point_.to(at::kDouble);
    const at::Tensor one = (ends.min - zero) * scale, other = (ends.max - zero) * scale;
    range.restore(at::minimum(one, other), at::maximum(one, other));
  }
  take_scale(range);
  return true;
}

void InputQuantizer::take_range() {
  const auto [low, high] = observer_.range();
  low_.copy_(low);
  high_.copy_(high);
}

void InputQuantizer::take_scale(const Observer& observer) {
  const at::NoGradGuard no_grad;
  const auto [scale, zero_point] = observer.qparams(spec_, scale_bits_);
  scale_.copy_(scale);
  zero_point_.copy_(zero_point);
}

void InputQuantizer::forget() {
  if (!calibrated()) return;
  observer_.reset();
  ready_ = false;
  low_.zero_();
  high_.zero_();
}

void InputQuantizer::start_calibration() {
  if (!calibrated()) return;
  forget();
  calibrating_ = true;
}

int64_t InputQuantizer::finish_calibration() {
  if (!calibrating_) return 0;
  calibrating_ = false;
  ready_ = !observer_.empty() && has_range();
  take_scale(observer_);
  return observer_.ignored();
}

void InputQuantizer::set_qparams(const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point) {
  const at::NoGradGuard no_grad;
  scale_.fill_(scale.item());
  zero_point_.fill_(zero_point ? zero_point->item() : at::Scalar(0));
  Levels range = quant_range(spec_, bits_);
  if (spec_.scale.has_outer()) {
    // The largest magnitude that blocks reach under this outer scale.
    range.max *= greatest_scale(spec_.scale.code);
    range.min *= greatest_scale(spec_.scale.code);
  }
  const double step = scale_.item<double>(), zero = zero_point_.item<double>();
  low_.fill_((range.min - zero) * step);
  high_.fill_((range.max - zero) * step);
  restore();
}

bool InputQuantizer::has_range() const {
  return low_.item<float>() != 0.0f || high_.item<float>() != 0.0f;
}

void InputQuantizer::restore() {
  if (!calibrated()) return;
  ready_ = has_range();
  observer_.reset();
  if (ready_) observer_.restore(low_, high_);
}

std::tuple<at::Tensor, at::Tensor> InputQuantizer::qparams() const {
  const at::NoGradGuard no_grad;
  if (!learned()) return {scale_, zero_point_};
  return round_qparams(scale_.detach(), input_quantizer_of(spec_, scale_bits_, features_).text(),
                       spec_.symmetric() ? std::nullopt : std::optional(zero_point_.detach()));
}

}  // namespace qat
