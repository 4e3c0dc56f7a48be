#pragma once

#include <torch/nn/modules/linear.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/observer.h"
#include "qat/plan.h"
#include "qat/schedule.h"
#include "qat/weight_cache.h"

namespace qat {

// Fake quantization of a weight: its spec, the width in force, and the scale and zero point when
// they are searched or learned rather than found in every forward.
class WeightQuantizer {
 public:
  explicit WeightQuantizer(const QuantSpec& spec) : spec_(spec) {}

  // Derives scale and zero point from the master weight at `bits`; kFloat switches off. `method` is
  // "minmax" or "mse". Learned parameters keep their tensors, so an optimizer goes on with them.
  void set_bits(int bits, const at::Tensor& weight, const std::string& method);
  void set_qparams(const at::Tensor& scale, const at::Tensor& zero_point);
  // How the operators round `weight` at the width in force.
  Quantizer quantizer(const at::Tensor& weight) const;
  // Scale and zero point in force, as they are stored.
  std::tuple<at::Tensor, at::Tensor> qparams(const at::Tensor& weight) const;

  const QuantSpec& spec() const { return spec_; }
  int bits() const { return bits_; }
  // Undefined where scales are found in every forward.
  const at::Tensor& scale() const { return scale_; }
  const at::Tensor& zero_point() const { return zero_point_; }

 private:
  QuantSpec spec_;
  int bits_ = kFloat;
  at::Tensor scale_;       // float32; undefined for Range::minmax
  at::Tensor zero_point_;  // float32 when learned on an asymmetric grid, else int8
};

// A drop-in for torch::nn::Linear that can be quantized in place: C++ modules are held by their
// members, so they cannot be swapped from outside. A plain linear layer until prepare().
class QuantLinearImpl : public torch::nn::LinearImpl {
 public:
  using torch::nn::LinearImpl::LinearImpl;

  at::Tensor forward(const at::Tensor& x);

  void prepare(const LayerPlan& plan, const std::string& method,
               CachePolicy cache = CachePolicy::none);
  void set_bits(int weight_bits, int input_bits, const std::string& method);
  QuantizedWeights convert(const std::string& name, at::ScalarType dtype) const;

  // Scales and zero points that were chosen together with the weight, for the width in force; the
  // weight moves to `master`, whose codes they have. For searched and learned scales.
  void set_rounded(const at::Tensor& master, const at::Tensor& scale, const at::Tensor& zero_point);
  // The weight that the forward uses, float32 [out, in].
  at::Tensor rounded_weight() const;
  // Called with every input, as the layer is given it; empty to stop.
  void on_input(std::function<void(const at::Tensor&)> callback) {
    on_input_ = std::move(callback);
  }

  const std::optional<WeightQuantizer>& weight_quantizer() const { return weight_; }
  const std::optional<QuantSpec>& input_spec() const { return input_; }
  Observer& observer() { return observer_; }
  bool observing = false;    // follow the input's range while training, where its observer does
  bool calibrating = false;  // observe the input whatever the observer, and let it pass as it is

 private:
  std::optional<WeightQuantizer> weight_;
  std::optional<QuantSpec> input_;
  int input_bits_ = kFloat;
  Observer observer_;
  WeightCache cache_;
  std::function<void(const at::Tensor&)> on_input_;
};
TORCH_MODULE(QuantLinear);

// The QuantLinear layers of `module`, as the planner wants them.
std::vector<LayerInfo> linear_layers(const torch::nn::Module& module);

// Applies a plan; decides nothing. `method` ("minmax" or "mse") begins searched and learned scales.
// `cache` says what layers keep of their quantized weights (weight_cache.h). Throws
// std::invalid_argument for a weight that is not finite, naming the layer.
void prepare(torch::nn::Module& module, const Plan& plan, const std::string& method,
             CachePolicy cache = CachePolicy::none);

// Sets every layer to the widths of `step`, re-deriving scales from the master weights where a
// width changed. Call it before the step is taken.
void apply_schedule(torch::nn::Module& module, const Schedule& schedule, int64_t step);

// The quantized weights of a prepared module, at their exported widths.
std::vector<QuantizedWeights> convert(const torch::nn::Module& module, at::ScalarType dtype);

}  // namespace qat
