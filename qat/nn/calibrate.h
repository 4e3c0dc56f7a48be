#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <concepts>
#include <functional>
#include <map>
#include <ranges>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/initialize.h"
#include "qat/solvers/gptq.h"

namespace qat {

// What calibration found.
struct QAT_API Calibration {
  std::map<std::string, double> losses;   // squared error of each rounded layer's output, per token
  std::map<std::string, int64_t> tokens;  // calibrated tokens of each layer
  std::vector<std::string> warnings;      // what had to be done differently, one sentence each
};

// Runs the module on one batch of calibration data.
using Pass = std::function<void()>;
// The same for batches of one tensor.
using Forward = std::function<void(const at::Tensor& batch)>;

// Where a LibTorch program lets AWQ and SmoothQuant put their scales: between a source, a layer or
// a normalisation whose weight has a row for each feature, and the linear layers that are given
// what it gives. Only what lets a scale for each feature pass, such as ReLU, may lie between.
struct QAT_API Fold {
  std::string source;
  std::vector<std::string> consumers;
};

// Rounds the weights of a prepared module as `settings` say, layer after layer in the order in
// which they run, each on what the rounded layers before it give; then finds the scales of inputs
// that are fixed beforehand. Layers that are given the same tensor share one pass, or, unless
// settings.sequential, all of them do.
//
// Nothing tells where in a LibTorch program scales of AWQ and SmoothQuant may go but `folds`;
// without them awq clips alone, and each transform that is left out has its warning. Blocks are the
// user's own modules: block_training is left out likewise, as is objective model, since nothing
// tells the loss whose gradients it would need.
//
// The module runs in evaluation mode, without gradients, as often as that takes, and is then in the
// mode in which it was, each of its modules in its own. Throws std::invalid_argument without a
// batch, when a method or an input needs one, and for a fold that the module does not allow
// (fold.h).
QAT_API Calibration calibrate(torch::nn::Module& module, const std::vector<Pass>& passes,
                              const Initialize& settings, const std::vector<Fold>& folds = {});
QAT_API Calibration calibrate(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                              const Forward& forward, const Initialize& settings,
                              const std::vector<Fold>& folds = {});

// The same with the method named: what `initialize: {method: gptq}` or `awq` says in a recipe. To
// be returned to by a schedule of several widths, codes want prepare() to have been told the
// method.
QAT_API Calibration gptq(torch::nn::Module& module, const std::vector<Pass>& passes,
                         const GptqOptions& options = {});
QAT_API Calibration gptq(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                         const Forward& forward, const GptqOptions& options = {});
QAT_API Calibration awq(torch::nn::Module& module, const std::vector<Pass>& passes,
                        const std::vector<Fold>& folds = {});
QAT_API Calibration awq(torch::nn::Module& module, const std::vector<at::Tensor>& batches,
                        const Forward& forward, const std::vector<Fold>& folds = {});

namespace detail {

template <typename Run, typename Batch>
struct Takes : std::bool_constant<std::invocable<Run&, const Batch&>> {};
template <typename Run, typename... Parts>
struct Takes<Run, std::tuple<Parts...>>
    : std::bool_constant<std::invocable<Run&, const std::tuple<Parts...>&> ||
                         std::invocable<Run&, const Parts&...>> {};

template <typename Run, typename Batches>
std::vector<Pass> passes_of(const Batches& batches, Run& run) {
  std::vector<Pass> passes;
  for (auto batch = std::ranges::begin(batches); batch != std::ranges::end(batches); ++batch)
    passes.push_back([&run, batch] {
      if constexpr (std::invocable<Run&, decltype(*batch)>)
        run(*batch);
      else
        std::apply(run, *batch);
    });
  return passes;
}

}  // namespace detail

// Whether `Run` can be called with each of these batches, or with the parts of each std::tuple.
template <typename Run, typename Batches>
concept RunsOn = std::ranges::forward_range<const Batches> &&
                 detail::Takes<Run, std::ranges::range_value_t<const Batches>>::value;

// The same for batches of any kind, such as tuples of tokens and a mask, in any range that can be
// gone through again.
template <typename Batches, RunsOn<Batches> Run>
Calibration calibrate(torch::nn::Module& module, const Batches& batches, Run&& run,
                      const Initialize& settings, const std::vector<Fold>& folds = {}) {
  return calibrate(module, detail::passes_of(batches, run), settings, folds);
}
template <typename Batches, RunsOn<Batches> Run>
Calibration gptq(torch::nn::Module& module, const Batches& batches, Run&& run,
                 const GptqOptions& options = {}) {
  return gptq(module, detail::passes_of(batches, run), options);
}
template <typename Batches, RunsOn<Batches> Run>
Calibration awq(torch::nn::Module& module, const Batches& batches, Run&& run,
                const std::vector<Fold>& folds = {}) {
  return awq(module, detail::passes_of(batches, run), folds);
}

}  // namespace qat
