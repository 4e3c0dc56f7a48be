#include "qat/calibrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "ops/checks.h"
#include "ops/choose_qparams.h"
#include "ops/fake_quantize_dynamic.h"
#include "qat/equalize.h"
#include "qat/gptq.h"
#include "qat/input_statistics.h"
#include "qat/layers.h"

namespace qat {
namespace {

struct Layer {
  std::string name;
  QuantLinearImpl* module;
};

// Layers that are given the same tensor.
using Stage = std::vector<Layer>;

std::vector<Layer> quantized_layers(const torch::nn::Module& module) {
  std::vector<Layer> layers;
  for (const auto& item : module.named_modules("", /*include_self=*/false))
    if (auto* layer = dynamic_cast<QuantLinearImpl*>(item.value().get()))
      if (layer->weight_quantizer() || layer->input_spec()) layers.push_back({item.key(), layer});
  return layers;
}

// The stages in the order in which they run, and the layers that no batch reaches.
std::vector<Stage> find_stages(const std::vector<Layer>& layers,
                               const std::vector<at::Tensor>& batches, const Forward& forward,
                               std::vector<Layer>& unreached) {
  std::vector<std::pair<at::Tensor, Stage>> stages;
  std::vector<std::string> seen;
  for (const Layer& layer : layers)
    layer.module->on_input([&, layer](const at::Tensor& x) {
      if (std::find(seen.begin(), seen.end(), layer.name) != seen.end()) return;
      seen.push_back(layer.name);
      const auto same = std::find_if(stages.begin(), stages.end(),
                                     [&](const auto& stage) { return stage.first.is_same(x); });
      if (same != stages.end())
        same->second.push_back(layer);
      else
        stages.push_back({x, {layer}});  // held, so that no later tensor takes its place
    });
  for (const at::Tensor& batch : batches)
    if (seen.size() < layers.size()) forward(batch);
  for (const Layer& layer : layers) {
    layer.module->on_input({});
    if (std::find(seen.begin(), seen.end(), layer.name) == seen.end()) unreached.push_back(layer);
  }
  std::vector<Stage> found;
  for (auto& [tensor, stage] : stages) found.push_back(std::move(stage));
  return found;
}

// As the layer sees it: rounded, where it is rounded in every call.
at::Tensor as_seen(const QuantLinearImpl& layer, const at::Tensor& x) {
  const auto& spec = layer.input_spec();
  if (!spec || !spec->dynamic) return x;
  return std::get<0>(fake_quantize_dynamic(x, block_shape(*spec), spec->bits, grid_name(spec->grid),
                                           spec->scale_dtype));
}

std::vector<InputStatistics> gather(const std::vector<Stage>& stages,
                                    const std::vector<at::Tensor>& batches,
                                    const Forward& forward) {
  std::vector<InputStatistics> statistics;
  for (const Stage& stage : stages)
    statistics.emplace_back(stage.front().module->options.in_features());
  for (size_t place = 0; place < stages.size(); ++place) {
    QuantLinearImpl* layer = stages[place].front().module;
    layer->on_input([&statistics, place, layer](const at::Tensor& x) {
      statistics[place].add(as_seen(*layer, x));
    });
  }
  for (const at::Tensor& batch : batches) forward(batch);
  for (const Stage& stage : stages) stage.front().module->on_input({});
  return statistics;
}

// (15) to (21), or plain rounding where there is nothing to go by.
std::string round_layer(QuantLinearImpl& layer, const std::optional<at::Tensor>& hessian,
                        const Initialize& settings, double* loss) {
  const WeightQuantizer& quantizer = *layer.weight_quantizer();
  const QuantSpec& spec = quantizer.spec();
  const int bits = quantizer.bits();
  const at::Tensor before = layer.weight.detach().to(at::kFloat);
  std::string warning;
  if (spec.range != Range::minmax && bits != 0) {
    if (settings.rounding == "gptq" && hessian) {
      const GptqOptions options{settings.damping, settings.block_size,
                                parse_column_order(settings.order), settings.scale_search, 0.0};
      const RoundedWeight rounded = gptq(layer.weight, *hessian, spec, bits, options);
      layer.set_rounded(rounded.target, rounded.scale, rounded.zero_point);
      warning = rounded.warning;
    } else if (settings.rounding == "clip" && hessian) {
      const auto [scale, zero_point] = clipped_qparams(layer.weight, *hessian, spec, bits);
      layer.set_rounded(layer.weight, scale, zero_point);
    } else {
      const bool searched = settings.rounding != "rtn";
      const auto importance =
          hessian && searched ? std::optional(hessian->diagonal().contiguous()) : std::nullopt;
      const auto [scale, zero_point] =
          choose_qparams(layer.weight, block_shape(spec), bits, grid_name(spec.grid),
                         searched ? "mse" : "minmax", spec.scale_dtype, importance);
      layer.set_rounded(layer.weight, scale, zero_point);
    }
  }
  if (hessian && bits != 0) *loss = output_error(before - layer.rounded_weight(), *hessian);
  return warning;
}

void round_stage(const Stage& stage, const InputStatistics& statistics, const Initialize& settings,
                 Calibration& found) {
  const auto hessian = statistics.tokens() > 0 ? std::optional(statistics.hessian()) : std::nullopt;
  for (const Layer& layer : stage) {
    if (!layer.module->weight_quantizer()) continue;
    double loss = 0.0;
    const std::string warning = round_layer(*layer.module, hessian, settings, &loss);
    found.losses[layer.name] = loss;
    found.tokens[layer.name] = statistics.tokens();
    if (!warning.empty()) found.warnings.push_back(layer.name + ": " + warning + ".");
  }
  if (statistics.ignored() > 0)
    found.warnings.push_back(stage.front().name + ": " + std::to_string(statistics.ignored()) +
                             " tokens were ignored, since they are not finite.");
  if (settings.rounding == "gptq" && statistics.tokens() > 0 &&
      statistics.tokens() < statistics.features())
    found.warnings.push_back(stage.front().name + " has " + std::to_string(statistics.features()) +
                             " features, but only " + std::to_string(statistics.tokens()) +
                             " calibration tokens reached it.");
}

void round_weights(const std::vector<Layer>& layers, const std::vector<at::Tensor>& batches,
                   const Forward& forward, const Initialize& settings, Calibration& found) {
  for (const std::string& transform : settings.transforms)
    found.warnings.push_back(
        transform + " has nothing to fold scales into in a LibTorch program, so it was left out.");
  if (settings.block_training.steps > 0)
    found.warnings.push_back("block_training was left out: a LibTorch program has no blocks.");
  std::vector<Layer> unreached;
  const std::vector<Stage> stages = find_stages(layers, batches, forward, unreached);
  if (settings.sequential) {
    for (const Stage& stage : stages)
      round_stage(stage, gather({stage}, batches, forward).front(), settings, found);
  } else {
    const std::vector<InputStatistics> statistics = gather(stages, batches, forward);
    for (size_t place = 0; place < stages.size(); ++place)
      round_stage(stages[place], statistics[place], settings, found);
  }
  for (const Layer& layer : unreached) {
    found.warnings.push_back(
        layer.name + " was never reached by the calibration data, so it was rounded to nearest.");
    double loss = 0.0;
    if (layer.module->weight_quantizer()) round_layer(*layer.module, std::nullopt, settings, &loss);
  }
}

void calibrate_inputs(const std::vector<Layer>& layers, const std::vector<at::Tensor>& batches,
                      const Forward& forward, Calibration& found) {
  std::vector<Layer> fixed;
  std::copy_if(layers.begin(), layers.end(), std::back_inserter(fixed), [](const Layer& layer) {
    return layer.module->input_spec() && !layer.module->input_spec()->dynamic;
  });
  if (fixed.empty()) return;
  if (batches.empty())
    throw std::invalid_argument("Calibration needs at least one batch, but there is none.");
  for (const Layer& layer : fixed) layer.module->calibrating = true;
  for (const at::Tensor& batch : batches) forward(batch);
  for (const Layer& layer : fixed) {
    layer.module->calibrating = false;
    if (const int64_t ignored = layer.module->observer().ignored())
      found.warnings.push_back(layer.name + ": inputs had " + std::to_string(ignored) +
                               " elements that are not finite, which were ignored.");
  }
}

}  // namespace

Calibration calibrate(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                      const Forward& forward, const Initialize& settings) {
  const at::NoGradGuard no_grad;
  const std::vector<Layer> layers = quantized_layers(module);
  for (const Layer& layer : layers) layer.module->observer().reset();
  Calibration found;
  if (settings.needs_data()) {
    if (batches.empty())
      throw std::invalid_argument("initialize.method " + settings.method +
                                  " needs at least one calibration batch, but there is none.");
    round_weights(layers, batches, forward, settings, found);
  }
  calibrate_inputs(layers, batches, forward, found);
  return found;
}

}  // namespace qat
