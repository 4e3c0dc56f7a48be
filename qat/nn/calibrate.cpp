#include "qat/nn/calibrate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "qat/error.h"
#include "qat/nn/fold.h"
#include "qat/nn/input_tap.h"
#include "qat/nn/layer_quantizer.h"
#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/solvers/equalize.h"
#include "qat/solvers/input_statistics.h"

namespace qat {
namespace {

// Layers that are given the same tensor.
using Together = std::vector<ModuleLayer>;

// The layers in the order in which they run, and those that no batch reaches.
std::vector<Together> find_order(const std::vector<ModuleLayer>& layers,
                                 const std::vector<Pass>& passes,
                                 std::vector<ModuleLayer>& unreached) {
  std::vector<std::pair<at::Tensor, Together>> order;
  std::vector<bool> seen(layers.size(), false);
  {
    const InputTap tap(layers, [&](size_t index, const at::Tensor& x, const InputTap::Rows&) {
      if (seen[index]) return;
      seen[index] = true;
      const auto same = std::find_if(order.begin(), order.end(),
                                     [&](const auto& one) { return one.first.is_same(x); });
      if (same != order.end())
        same->second.push_back(layers[index]);
      else
        order.push_back({x, {layers[index]}});  // held, so that no later tensor takes its place
    });
    for (const Pass& pass : passes)
      if (std::find(seen.begin(), seen.end(), false) != seen.end()) pass();
  }
  for (size_t index = 0; index < layers.size(); ++index)
    if (!seen[index]) unreached.push_back(layers[index]);
  std::vector<Together> found;
  for (auto& [tensor, together] : order) found.push_back(std::move(together));
  return found;
}

std::vector<InputStatistics> gather(const std::vector<Together>& order,
                                    const std::vector<Pass>& passes) {
  std::vector<ModuleLayer> firsts;
  std::vector<InputStatistics> statistics;
  for (const Together& together : order) {
    firsts.push_back(together.front());
    statistics.emplace_back(together.front().quantizer()->master().size(1));
  }
  const InputTap tap(firsts, [&](size_t index, const at::Tensor&, const InputTap::Rows& rows) {
    statistics[index].add(rows());
  });
  for (const Pass& pass : passes) pass();
  return statistics;
}

// (15) to (21), or plain rounding where there is nothing to go by.
std::string round_layer(LayerQuantizer& layer, const std::optional<at::Tensor>& hessian,
                        const Initialize& settings, double* loss) {
  const WeightQuantizer& quantizer = *layer.weight();
  const QuantSpec& spec = quantizer.spec();
  const int bits = quantizer.bits();
  const at::Tensor before = layer.master().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  std::string warning;
  if (spec.range != Range::minmax && bits != 0) {
    const OuterParameters outer = layer.settle_outer_scales();
    if (settings.rounding == Rounding::gptq && hessian) {
      const GptqOptions options{.damping = settings.damping,
                                .block_size = settings.block_size,
                                .order = settings.order,
                                .scale_search = settings.scale_search,
                                .sweeps = settings.sweeps};
      const RoundedWeight rounded =
          solvers::gptq(layer.master(), *hessian, spec, bits, options, std::nullopt, outer);
      layer.set_rounded(rounded.target, rounded.scale, rounded.zero_point);
      warning = rounded.warning;
    } else if (settings.rounding == Rounding::clip && hessian) {
      const auto [scale, zero_point] =
          solvers::clipped_qparams(layer.master(), *hessian, spec, bits, outer);
      layer.set_rounded(layer.master(), scale, zero_point);
    } else {
      const ScaleSearch search = settings.search();
      const auto importance = hessian && search == ScaleSearch::mse
                                  ? std::optional(hessian->diagonal().contiguous())
                                  : std::nullopt;
      layer.choose_scale(search, importance);
    }
  }
  if (hessian && bits != 0) *loss = solvers::output_error(before - layer.rounded(), *hessian);
  return warning;
}

void round_together(const Together& together, const InputStatistics& statistics,
                    const Initialize& settings, Calibration& found) {
  const auto hessian = statistics.tokens() > 0 ? std::optional(statistics.hessian()) : std::nullopt;
  for (const ModuleLayer& layer : together) {
    if (!layer.quantizer()->weight()) continue;
    double loss = 0.0;
    const std::string warning = round_layer(*layer.quantizer(), hessian, settings, &loss);
    found.losses[layer.name] = loss;
    found.tokens[layer.name] = statistics.tokens();
    if (!warning.empty()) found.warnings.push_back(layer.name + ": " + warning + ".");
  }
  if (statistics.ignored() > 0)
    found.warnings.push_back(together.front().name + ": " + std::to_string(statistics.ignored()) +
                             " tokens were ignored, since they are not finite.");
  if (settings.rounding == Rounding::gptq && statistics.tokens() > 0 &&
      statistics.tokens() < statistics.features())
    found.warnings.push_back(together.front().name + " has " +
                             std::to_string(statistics.features()) + " features, but only " +
                             std::to_string(statistics.tokens()) +
                             " calibration tokens reached it.");
}

void transform(torch::nn::Module& module, const std::vector<Pass>& passes,
               const Initialize& settings, const std::vector<Fold>& folds, Calibration& found) {
  for (const Transform chosen : settings.transforms) {
    const bool here = chosen != Transform::hadamard && !folds.empty();
    if (!here)
      found.warnings.push_back(
          std::string(name_of(chosen)) +
          " has nothing to fold scales into in a LibTorch program, so it was left out.");
    else
      for (const Fold& fold : folds) apply_fold(module, fold, chosen, settings, passes);
  }
  if (settings.block_training.steps > 0)
    found.warnings.push_back("block_training was left out: a LibTorch program has no blocks.");
  if (settings.objective == Objective::model)
    found.warnings.push_back(
        "objective model was left out: a LibTorch program tells no loss, so each layer is rounded "
        "for "
        "its own output.");
}

void round_weights(const std::vector<ModuleLayer>& layers, const std::vector<Pass>& passes,
                   const Initialize& settings, Calibration& found) {
  std::vector<ModuleLayer> unreached;
  const std::vector<Together> order = find_order(layers, passes, unreached);
  if (settings.sequential) {
    for (const Together& together : order)
      round_together(together, gather({together}, passes).front(), settings, found);
  } else {
    const std::vector<InputStatistics> statistics = gather(order, passes);
    for (size_t place = 0; place < order.size(); ++place)
      round_together(order[place], statistics[place], settings, found);
  }
  for (const ModuleLayer& layer : unreached) {
    const auto quantizer = layer.quantizer();
    if (!quantizer->weight()) continue;
    if (InputTap::reaches(layer))
      found.warnings.push_back(
          layer.name + " was never reached by the calibration data, so it was rounded to nearest.");
    double loss = 0.0;
    round_layer(*quantizer, std::nullopt, settings, &loss);
  }
}

void calibrate_inputs(const std::vector<ModuleLayer>& layers, const std::vector<Pass>& passes,
                      Calibration& found) {
  std::vector<std::pair<std::string, InputQuantizer*>> fixed;
  for (const ModuleLayer& layer : layers)
    if (auto& input = layer.quantizer()->input_quantizer(); input && input->calibrated())
      fixed.emplace_back(layer.name, &*input);
  if (fixed.empty()) return;
  if (passes.empty())
    throw InvalidArgument("Calibration needs at least one batch, but there is none.");
  for (const auto& [name, input] : fixed) input->start_calibration();
  for (const Pass& pass : passes) pass();
  for (const auto& [name, input] : fixed) {
    if (const int64_t ignored = input->finish_calibration())
      found.warnings.push_back(name + ": inputs had " + std::to_string(ignored) +
                               " elements that are not finite, which were ignored.");
    if (input->has_range()) continue;
    found.warnings.push_back(name +
                             (input->observer().empty()
                                  ? " was reached by no calibration batch"
                                  : " was given zeros alone by all calibration batches") +
                             ", so its input has no range.");
    input->forget();  // a range that follows the data begins with what comes
  }
}

// Evaluation mode until restored: each module's own mode, since a program may have frozen some.
class Evaluating {
 public:
  explicit Evaluating(torch::nn::Module& module) {
    modes_.emplace_back(&module, module.is_training());
    for (const auto& item : module.named_modules("", /*include_self=*/false))
      modes_.emplace_back(item.value().get(), item.value()->is_training());
    module.eval();
  }
  // After an error another one, of the memory for weights that are rounded anew, is not news.
  ~Evaluating() {
    try {
      restore();
    } catch (...) {
    }
  }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

  void restore() {
    // Those that hold others come first: their mode is that of all in them, until these are set.
    for (const auto& [module, mode] : std::exchange(modes_, {}))
      if (module->is_training() != mode) module->train(mode);
  }

 private:
  std::vector<std::pair<torch::nn::Module*, bool>> modes_;
};

Initialize settings_of(const char* method) {
  Initialize settings;
  parse_method(method, &settings);
  return settings;
}

}  // namespace

Calibration calibrate(torch::nn::Module& module, const std::vector<Pass>& passes,
                      const Initialize& settings, const std::vector<Fold>& folds) {
  const at::NoGradGuard no_grad;
  Evaluating evaluating(module);
  const std::vector<ModuleLayer> layers = prepared_layers(module);
  for (const ModuleLayer& layer : layers)
    if (auto& input = layer.quantizer()->input_quantizer()) input->forget();
  for (const ModuleLayer& layer : layers) layer.quantizer()->unsettle_outer_scales();
  Calibration found;
  if (settings.needs_data()) {
    if (passes.empty())
      throw InvalidArgument("initialize.method " + settings.method +
                            " needs at least one calibration batch, but there is none.");
    transform(module, passes, settings, folds, found);
    round_weights(layers, passes, settings, found);
  }
  calibrate_inputs(layers, passes, found);
  evaluating.restore();
  return found;
}

Calibration calibrate(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                      const Forward& forward, const Initialize& settings,
                      const std::vector<Fold>& folds) {
  return calibrate(module, detail::passes_of(batches, forward), settings, folds);
}

Calibration gptq(torch::nn::Module& module, const std::vector<Pass>& passes,
                 const GptqOptions& options) {
  Initialize settings = settings_of("gptq");
  settings.damping = options.damping;
  settings.block_size = options.block_size;
  settings.order = options.order;
  settings.scale_search = options.scale_search;
  settings.sweeps = options.sweeps;
  return calibrate(module, passes, settings);
}

Calibration gptq(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                 const Forward& forward, const GptqOptions& options) {
  return gptq(module, detail::passes_of(batches, forward), options);
}

Calibration awq(torch::nn::Module& module, const std::vector<Pass>& passes,
                const std::vector<Fold>& folds) {
  return calibrate(module, passes, settings_of("awq"), folds);
}

Calibration awq(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                const Forward& forward, const std::vector<Fold>& folds) {
  return awq(module, detail::passes_of(batches, forward), folds);
}

}  // namespace qat
