#include "qat/layers.h"

#include <ATen/Functions.h>

#include <stdexcept>

#include "ops/checks.h"
#include "ops/choose_qparams.h"
#include "ops/fake_quantize.h"
#include "ops/quant_linear.h"

namespace qat {
namespace {

struct Ends {
  int64_t min;
  int64_t max;
};

Ends integer_ends(const QuantSpec& spec, int bits) {
  const QuantRange range = quant_range(spec, bits);
  return {static_cast<int64_t>(range.min), static_cast<int64_t>(range.max)};
}

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// Without the module itself, which need not be held by a shared_ptr.
torch::OrderedDict<std::string, std::shared_ptr<torch::nn::Module>> named_children(
    const torch::nn::Module& module) {
  return module.named_modules("", /*include_self=*/false);
}

}  // namespace

void WeightQuantizer::set_bits(int bits, const at::Tensor& weight, const std::string& method) {
  if (bits == bits_) return;
  bits_ = bits;
  if (bits == kFloat || spec_.range == Range::minmax) return;
  const at::NoGradGuard no_grad;
  auto [scale, zero_point] = choose_qparams(weight, block_shape(spec_), bits, grid_name(spec_.grid),
                                            method, spec_.scale_dtype);
  const bool learned = spec_.range == Range::learned;
  if (learned && !spec_.symmetric()) zero_point = zero_point.to(at::kFloat);
  if (scale_.defined()) {
    scale_.copy_(scale);
    zero_point_.copy_(zero_point);
    return;
  }
  scale_ = scale.requires_grad_(learned);
  zero_point_ = zero_point;
  if (learned && !spec_.symmetric()) zero_point_.requires_grad_(true);
}

void WeightQuantizer::set_qparams(const at::Tensor& scale, const at::Tensor& zero_point) {
  const at::NoGradGuard no_grad;
  scale_.copy_(scale);
  zero_point_.copy_(zero_point);
}

Quantizer WeightQuantizer::quantizer(const at::Tensor& weight) const {
  return weight_quantizer_of(spec_, bits_, weight.size(0), weight.size(1));
}

std::tuple<at::Tensor, at::Tensor> WeightQuantizer::qparams(const at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  if (spec_.range == Range::minmax)
    return choose_qparams(weight, block_shape(spec_), bits_, grid_name(spec_.grid), "minmax",
                          spec_.scale_dtype);
  if (spec_.range == Range::mse) return {scale_, zero_point_};
  const Ends ends = integer_ends(spec_, bits_);
  return round_qparams(scale_, spec_.symmetric() ? std::nullopt : std::optional(zero_point_),
                       ends.min, ends.max, spec_.scale_dtype);
}

void QuantLinearImpl::set_rounded(const at::Tensor& master, const at::Tensor& scale,
                                  const at::Tensor& zero_point) {
  const at::NoGradGuard no_grad;
  weight.copy_(master);
  weight_->set_qparams(scale, zero_point);
}

at::Tensor QuantLinearImpl::rounded_weight() const {
  const at::NoGradGuard no_grad;
  const at::Tensor master = weight.detach().to(at::kFloat);
  if (!weight_ || weight_->bits() == kFloat) return master;
  const auto [scale, zero_point] = weight_->qparams(weight);
  const Ends ends = integer_ends(weight_->spec(), weight_->bits());
  return fake_quantize(master, scale, zero_point, block_shape(weight_->spec()), ends.min, ends.max);
}

at::Tensor QuantLinearImpl::forward(const at::Tensor& x) {
  if (on_input_) on_input_(x);
  if (input_ && !input_->dynamic && (calibrating || (observing && follows(input_->observer.kind))))
    observer_.observe(x);
  const Quantizer weights = weight_ ? weight_->quantizer(weight) : Quantizer();
  // Before its range is known, an input whose scale is fixed beforehand passes as it is.
  const bool ready = input_ && !calibrating && (input_->dynamic || !observer_.empty());
  Quantizer inputs =
      ready ? input_quantizer_of(*input_, input_bits_, options.in_features()) : Quantizer();
  // Inputs whose scale is not found per call have the observer's.
  if (inputs.mode == Quantizer::Mode::learned) inputs.mode = Quantizer::Mode::fixed;
  if (!weights.active() && !inputs.active()) return at::linear(x, weight, bias);
  std::optional<at::Tensor> scale, zero_point, input_scale, input_zero_point;
  if (weight_) {
    scale = given(weight_->scale());
    if (weights.mode == Quantizer::Mode::fixed || !weight_->spec().symmetric())
      zero_point = given(weight_->zero_point());
  }
  if (inputs.mode == Quantizer::Mode::fixed)
    std::tie(input_scale, input_zero_point) = observer_.qparams(*input_, input_bits_);
  const auto kept = cache_.get(weights, weight, scale, zero_point, x.scalar_type());
  return quant_linear(x, weight, given(bias), scale, zero_point, input_scale, input_zero_point,
                      kept, weights.text(), inputs.text());
}

void QuantLinearImpl::prepare(const LayerPlan& plan, const std::string& method, CachePolicy cache) {
  if (!at::isfinite(weight).all().item<bool>())
    throw std::invalid_argument("The weight of " + plan.name +
                                " must be finite, but has elements that are NaN or infinite.");
  if (plan.weight) weight_.emplace(*plan.weight);
  cache_ = WeightCache(cache);
  input_ = plan.input;
  if (input_) observer_ = Observer(input_->observer);
  set_bits(plan.weight ? plan.weight->bits : kFloat, plan.input ? plan.input->bits : kFloat,
           method);
  if (!plan.weight || plan.weight->range != Range::learned) return;
  register_parameter("weight_scale", weight_->scale());
  if (!plan.weight->symmetric()) register_parameter("weight_zero_point", weight_->zero_point());
}

void QuantLinearImpl::set_bits(int weight_bits, int input_bits, const std::string& method) {
  if (weight_) weight_->set_bits(weight_bits, weight, method);
  input_bits_ = input_bits;
}

QuantizedWeights QuantLinearImpl::convert(const std::string& name, at::ScalarType dtype) const {
  const auto [scale, zero_point] = weight_->qparams(weight);
  QuantizedWeights converted =
      quantize_weights(name, weight_->spec(), weight, scale, zero_point, dtype);
  converted.input = input_;
  if (input_ && !input_->dynamic) {
    const auto [input_scale, input_zero_point] = observer_.qparams(*input_, input_->bits);
    converted.input_scale = input_scale.view({1});
    if (!input_->symmetric()) converted.input_zero_point = input_zero_point.view({1});
  }
  return converted;
}

std::vector<LayerInfo> linear_layers(const torch::nn::Module& module) {
  std::vector<LayerInfo> layers;
  for (const auto& item : named_children(module))
    if (const auto* layer = dynamic_cast<const QuantLinearImpl*>(item.value().get()))
      layers.push_back({item.key(), "Linear", layer->options.in_features(),
                        layer->options.out_features(), false});
  return layers;
}

void prepare(torch::nn::Module& module, const Plan& plan, const std::string& method,
             CachePolicy cache) {
  const auto modules = named_children(module);
  for (const LayerPlan& layer : plan.layers) {
    auto* found = modules.contains(layer.name)
                      ? dynamic_cast<QuantLinearImpl*>(modules[layer.name].get())
                      : nullptr;
    if (!found)
      throw std::invalid_argument("The plan names " + layer.name +
                                  ", which must be a qat::QuantLinear of the module, but is not.");
    found->prepare(layer, method, cache);
  }
}

void apply_schedule(torch::nn::Module& module, const Schedule& schedule, int64_t step) {
  for (const auto& child : module.modules(/*include_self=*/false)) {
    auto* layer = dynamic_cast<QuantLinearImpl*>(child.get());
    if (!layer) continue;
    const auto& weight = layer->weight_quantizer();
    const auto& input = layer->input_spec();
    layer->set_bits(weight ? schedule.weight_bits(step, weight->spec().bits) : kFloat,
                    input ? schedule.input_bits(step, input->bits) : kFloat, "mse");
    layer->observing = schedule.observing(step);
  }
}

std::vector<QuantizedWeights> convert(const torch::nn::Module& module, at::ScalarType dtype) {
  std::vector<QuantizedWeights> converted;
  for (const auto& item : named_children(module)) {
    const auto* layer = dynamic_cast<const QuantLinearImpl*>(item.value().get());
    if (layer && layer->weight_quantizer()) converted.push_back(layer->convert(item.key(), dtype));
  }
  return converted;
}

}  // namespace qat
