#include "qat/nn/fold.h"

#include <ATen/ops/abs.h>

#include <algorithm>
#include <stdexcept>

#include "qat/error.h"
#include "qat/nn/input_tap.h"
#include "qat/nn/layer_quantizer.h"
#include "qat/solvers/equalize.h"
#include "qat/solvers/input_statistics.h"

namespace qat {
namespace {

std::string text_of(const Fold& fold) {
  std::string text = "The fold of " + fold.source + " into ";
  for (size_t i = 0; i < fold.consumers.size(); ++i)
    text += (i == 0 ? "" : i + 1 == fold.consumers.size() ? " and " : ", ") + fold.consumers[i];
  return text;
}

std::vector<ModuleLayer> consumers_of(const torch::nn::Module& module, const Fold& fold) {
  const std::vector<ModuleLayer> layers = prepared_layers(module);
  std::vector<ModuleLayer> found;
  for (const std::string& name : fold.consumers) {
    const auto layer = std::find_if(layers.begin(), layers.end(), [&](const ModuleLayer& one) {
      return one.name == name && one.type == "Linear" && one.quantizer()->weight();
    });
    if (layer == layers.end())
      throw InvalidArgument(text_of(fold) + ": " + name +
                            " must be a linear layer whose weight is quantized, but is not.");
    found.push_back(*layer);
  }
  if (found.empty()) throw InvalidArgument(text_of(fold) + " must have consumers.");
  return found;
}

// What gives the consumers' features: its weight (rows, or one number each) and its bias.
class Source {
 public:
  Source(const torch::nn::Module& module, const Fold& fold, int64_t features) {
    const auto modules = module.named_modules("", /*include_self=*/false);
    if (modules.contains(fold.source)) {
      const auto parameters = modules[fold.source]->named_parameters(/*recurse=*/false);
      for (const char* name : {"weight", "bias"})
        if (parameters.contains(name) && parameters[name].defined() &&
            parameters[name].size(0) == features)
          parameters_.push_back(parameters[name].detach());
      quantizer_ = quantizer_of(*modules[fold.source]);
    }
    if (parameters_.empty())
      throw InvalidArgument(text_of(fold) + ": " + fold.source +
                            " must be a module with a weight of " + std::to_string(features) +
                            " rows, but is not.");
    for (const at::Tensor& one : parameters_) before_.push_back(one.clone());
  }

  void divide(const at::Tensor& scale) {
    for (at::Tensor& one : parameters_) {
      std::vector<int64_t> shape(static_cast<size_t>(one.dim()), 1);
      shape[0] = -1;
      one.div_(scale.to(one.scalar_type()).view(shape));
    }
    refresh();
  }
  void restore() {
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].copy_(before_[i]);
    refresh();
  }
  // While its scale is moved, its weight is not rounded: that would hide whether the scale passes.
  void round(bool on) {
    if (!quantizer_ || !quantizer_->weight()) return;
    const auto& input = quantizer_->input_quantizer();
    if (!on) bits_ = quantizer_->weight()->bits();
    quantizer_->set_bits(on ? bits_ : kFloat, input ? input->bits() : kFloat, ScaleSearch::mse);
    refresh();
  }

 private:
  void refresh() {
    if (quantizer_) quantizer_->refresh();
  }
  std::vector<at::Tensor> parameters_, before_;
  std::shared_ptr<LayerQuantizer> quantizer_;
  int bits_ = kFloat;
};

// What the pass gives the layer first.
at::Tensor first_input(const ModuleLayer& layer, const Pass& pass) {
  at::Tensor found;
  const InputTap tap({layer}, [&](size_t, const at::Tensor& x, const InputTap::Rows&) {
    if (!found.defined()) found = x.detach().clone();
  });
  pass();
  return found;
}

// The place of `shared` in `groups`, to which it is added; -1 for none.
int number_of(const SharedOuterScale* shared, std::vector<const SharedOuterScale*>& groups) {
  if (!shared) return -1;
  const auto found = std::find(groups.begin(), groups.end(), shared);
  const auto place = static_cast<int>(found - groups.begin());
  if (found == groups.end()) groups.push_back(shared);
  return place;
}

at::Tensor choose(Transform transform, const std::vector<ModuleLayer>& consumers,
                  const InputStatistics& statistics, const Initialize& settings) {
  if (transform == Transform::smoothquant) {
    std::vector<at::Tensor> weights;
    for (const ModuleLayer& one : consumers) weights.push_back(one.quantizer()->master());
    return solvers::smoothing_scale(weights, statistics.max_magnitude(), settings.smoothing);
  }
  std::vector<solvers::Consumer> weights;
  std::vector<const SharedOuterScale*> groups;
  for (const ModuleLayer& one : consumers) {
    const auto quantizer = one.quantizer();
    const QuantSpec& spec = quantizer->weight()->spec();
    weights.push_back(
        {quantizer->master(), spec, spec.bits, number_of(quantizer->shared_outer_scale(), groups)});
  }
  return solvers::awq_scale(weights, statistics).scale;
}

// Dividing and multiplying rounds each number twice; what does not commute is off by far more.
bool nearly_equal(const at::Tensor& found, const at::Tensor& expected) {
  const double size = expected.abs().max().item<double>();
  const double eps = expected.scalar_type() == at::kFloat ? 1e-4 : 3e-2;
  return (found - expected).abs().max().item<double>() <= eps * size;
}

}  // namespace

void apply_fold(torch::nn::Module& module, const Fold& fold, Transform transform,
                const Initialize& settings, const std::vector<Pass>& passes) {
  const std::vector<ModuleLayer> consumers = consumers_of(module, fold);
  const int64_t features = consumers.front().weight->size(1);
  Source source(module, fold, features);
  InputStatistics statistics(features);
  const Pass* reaching = nullptr;  // the first that gives the consumers anything
  {
    const InputTap tap(
        {consumers.front()},
        [&](size_t, const at::Tensor&, const InputTap::Rows& rows) { statistics.add(rows()); });
    for (const Pass& pass : passes) {
      pass();
      if (!reaching && statistics.tokens() > 0) reaching = &pass;
    }
  }
  if (!reaching) return;
  const at::Tensor scale = choose(transform, consumers, statistics, settings);

  source.round(false);
  const at::Tensor before = first_input(consumers.front(), *reaching);
  source.divide(scale);
  const at::Tensor after = first_input(consumers.front(), *reaching);
  const bool lets_pass = nearly_equal(after * scale.to(after.scalar_type()), before);
  if (!lets_pass) source.restore();
  source.round(true);
  if (!lets_pass)
    throw InvalidArgument(text_of(fold) +
                          ": what lies between them must let a scale for each feature pass, "
                          "as ReLU does, but the input changed in another way.");
  for (const ModuleLayer& one : consumers) one.quantizer()->scale_columns(scale);
}

}  // namespace qat
