#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "qat/ops/api.h"
#include "qat/recipe/recipe.h"
#include "qat/solvers/observer.h"
#include "qat/spec.h"

namespace qat {

// x rounded as `spec` says at `bits`: with a scale found in the call, or with these, of one
// element each; under an outer scale `scale` is that, and blocks find their own.
QAT_API at::Tensor rounded_input(const at::Tensor& x, const QuantSpec& spec, int bits,
                                 const at::Tensor& scale,
                                 const std::optional<at::Tensor>& zero_point);

// Fake quantization of a layer's input: with a scale that is found in every call, or with one that
// was calibrated, goes on following the input's range while training, or is learned. Of blocks under
// an outer scale it is the outer one that is calibrated.
class QAT_API InputQuantizer {
 public:
  // `features`: elements that share a learned scale; `device` that of the layer.
  InputQuantizer(const QuantSpec& spec, int64_t features, at::Device device);

  // What the layer multiplies, in the dtype of x. Before it was observed, an input whose scale is
  // fixed beforehand passes as it is. Following a range does not wait for the device.
  at::Tensor operator()(const at::Tensor& x, bool training);

  // Sets the width; kFloat switches off. Unless `derive` is false, a range that is observed gives
  // the new scale, and one that was searched or learned is kept as it is. Returns whether the scale
  // changed.
  bool set_bits(int bits, bool derive = true);
  void set_observing(bool on) { observing_ = on; }
  // Lets an input whose scale is fixed beforehand pass as it is, until it is calibrated.
  void forget();
  // From here on the input is observed, whatever its observer, and passes as it is.
  void start_calibration();
  // Takes the scale of what was observed. Returns how many elements were ignored, since they are
  // not finite.
  int64_t finish_calibration();
  // Takes these, as a checkpoint has them, for the width in force.
  void set_qparams(const at::Tensor& scale, const std::optional<at::Tensor>& zero_point);
  // Goes on from the range that was loaded.
  void restore();

  const QuantSpec& spec() const { return spec_; }
  int bits() const { return bits_; }
  const Observer& observer() const { return observer_; }
  bool calibrated() const { return !spec_.dynamic; }
  // Of calibrated inputs: whether anything but zeros was observed, which fit under any scale and say
  // nothing of what else may come.
  bool has_range() const;
  bool learned() const { return calibrated() && spec_.range == Range::learned; }
  // Scale and zero point as they are stored, [1, 1]; for calibrated inputs.
  std::tuple<at::Tensor, at::Tensor> qparams() const;
  // What training state holds; undefined for inputs whose scale is found in every call.
  const at::Tensor& scale() const { return scale_; }
  const at::Tensor& zero_point() const { return zero_point_; }
  const at::Tensor& low() const { return low_; }
  const at::Tensor& high() const { return high_; }

 private:
  void observe(const at::Tensor& x);
  void take_range();
  void take_scale(const Observer& observer);

  QuantSpec spec_;
  int64_t features_;
  int bits_ = kFloat;
  int scale_bits_;  // the width that the scale was chosen for
  bool observing_ = false;
  bool calibrating_ = false;
  bool ready_ = false;
  Observer observer_;
  at::Tensor scale_, zero_point_, low_, high_;
};

}  // namespace qat
