#include "qat/solvers/equalize.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/fake_quantize.h"
#include "qat/solvers/full_precision.h"

namespace qat::solvers {
namespace {

constexpr int kClipSteps = 11;
constexpr double kClipStep = 0.05;

std::string finder_of(const Consumer& layer) {
  return quantizer_of(layer.spec, layer.bits, Quantizer::Mode::minmax).text();
}

// The outer scales that layers share: the largest that one among them needs, its columns multiplied
// by `scale`.
std::map<int, at::Tensor> shared_outer_scales(const std::vector<Consumer>& consumers,
                                              const at::Tensor& scale) {
  std::map<int, at::Tensor> found;
  for (const Consumer& layer : consumers) {
    if (layer.shares == -1) continue;
    const at::Tensor own =
        std::get<0>(choose_outer_scales(layer.weight.to(at::kFloat) * scale, finder_of(layer)));
    at::Tensor& largest = found[layer.shares];
    largest = largest.defined() ? at::maximum(largest, own) : own;
  }
  return found;
}

double loss_of(const std::vector<Consumer>& consumers, const at::Tensor& hessian,
               const at::Tensor& scale) {
  const std::map<int, at::Tensor> shared = shared_outer_scales(consumers, scale);
  double total = 0.0;
  for (const Consumer& layer : consumers) {
    const at::Tensor weight = layer.weight.to(at::kFloat);
    const auto outer = layer.shares == -1 ? std::nullopt : std::optional(shared.at(layer.shares));
    const at::Tensor rounded = std::get<0>(
        fake_quantize(weight * scale, finder_of(layer), std::nullopt, std::nullopt, outer));
    total += output_error(weight - rounded / scale, hessian);
  }
  return total;
}

// Centred so that neither the largest nor the smallest runs away; what overflowed counts as 1.
at::Tensor centred(const at::Tensor& scale) {
  const at::Tensor centre = (scale.max() * scale.min()).sqrt();
  return at::nan_to_num(scale / centre, 1.0, 1.0, 1.0).clamp_min(1e-4);
}

}  // namespace

double output_error(const at::Tensor& error, const at::Tensor& hessian) {
  const FullPrecision full;
  return (at::mm(error, hessian) * error).sum(at::kDouble).item<double>();
}

ChannelScale awq_scale(const std::vector<Consumer>& consumers, const InputStatistics& inputs,
                       int points) {
  const at::NoGradGuard no_grad;
  const FullPrecision full;
  for (const Consumer& layer : consumers)
    if (layer.weight.size(1) != inputs.features())
      throw InvalidArgument("AWQ needs statistics of " + std::to_string(layer.weight.size(1)) +
                            " features, as the weight has, but they are of " +
                            std::to_string(inputs.features()) + ".");
  const at::Tensor hessian = inputs.hessian();
  const at::Tensor magnitude = inputs.mean_magnitude().clamp_min(1e-4);
  const at::Tensor ones = at::ones_like(magnitude);
  const double plain = loss_of(consumers, hessian, ones);
  ChannelScale best{ones, plain, plain};
  for (int point = 1; point < points; ++point) {
    const at::Tensor scale = centred(magnitude.pow(static_cast<double>(point) / points));
    const double loss = loss_of(consumers, hessian, scale);
    if (loss < best.loss) best.loss = loss, best.scale = scale;
  }
  return best;
}

at::Tensor smoothing_scale(const std::vector<at::Tensor>& weights, const at::Tensor& max_magnitude,
                           double alpha) {
  const at::NoGradGuard no_grad;
  if (!(alpha >= 0.0 && alpha <= 1.0))
    throw InvalidArgument("alpha must be from 0 to 1, but is " + std::to_string(alpha) + ".");
  at::Tensor largest = at::zeros_like(max_magnitude);
  for (const at::Tensor& weight : weights)
    largest = at::maximum(largest, weight.to(at::kFloat).abs().amax(0));
  const at::Tensor scale =
      max_magnitude.clamp_min(1e-5).pow(alpha) / largest.clamp_min(1e-5).pow(1.0 - alpha);
  // A feature that is never used, on either side, is left as it is.
  const at::Tensor used = (max_magnitude > 0).logical_and(largest > 0);
  return at::where(used, at::nan_to_num(scale, 1.0, 1.0, 1.0), at::ones_like(scale));
}

std::tuple<at::Tensor, at::Tensor> clipped_qparams(const at::Tensor& weight,
                                                   const at::Tensor& hessian, const QuantSpec& spec,
                                                   int bits, const OuterParameters& outer) {
  const at::NoGradGuard no_grad;
  const FullPrecision full;
  const at::Tensor master = weight.detach().to(at::kFloat);
  const int64_t rows = master.size(0), cols = master.size(1);
  const auto block = block_shape(spec);
  const BlockLayout layout = make_layout(rows, cols, block[0], block[1]);
  const OuterParameters under = outer_parameters(master, spec, bits, outer);
  Quantizer finder = quantizer_of(spec, bits, Quantizer::Mode::minmax);
  const bool widens = finder.takes_better();  // the error that is judged here decides
  if (widens) finder.scale_code = ScaleCode::e4m3;
  const std::string finds = finder.text(),
                    rounds = quantizer_of(spec, bits, Quantizer::Mode::fixed).text();
  const at::Tensor least =
      at::full({layout.grid_rows, layout.grid_cols}, std::numeric_limits<double>::infinity(),
               master.options().dtype(at::kDouble));
  at::Tensor best_scale, best_zero;
  for (int step = 0; step < kClipSteps + (widens ? 1 : 0); ++step) {
    const double fraction = step == kClipSteps ? 1.5 : 1.0 - step * kClipStep;
    // The range of the shrunk weight is the shrunk range.
    const auto [scale, zero] =
        choose_qparams(master * fraction, finds, "minmax", std::nullopt, under.scale, under.offset);
    const at::Tensor error = master - std::get<0>(fake_quantize(master, rounds, scale, zero));
    if (!best_scale.defined()) best_scale = scale.clone(), best_zero = zero.clone();
    for (int64_t col = 0; col < layout.grid_cols; ++col) {
      const int64_t from = col * layout.block_cols;
      const int64_t to = std::min(from + layout.block_cols, cols);
      const at::Tensor part = error.slice(1, from, to);
      const at::Tensor own = hessian.slice(0, from, to).slice(1, from, to);
      at::Tensor loss = (at::mm(part, own) * part).sum(1, false, at::kDouble);
      if (layout.grid_rows != rows) {
        const int64_t padded = layout.grid_rows * layout.block_rows;
        loss = at::constant_pad_nd(loss, {0, padded - rows})
                   .view({layout.grid_rows, layout.block_rows})
                   .sum(1);
      }
      at::Tensor record = least.select(1, col);
      const at::Tensor better = loss < record;
      record.copy_(at::where(better, loss, record));
      const auto keep = [&](const at::Tensor& best, const at::Tensor& found) {
        at::Tensor column = best.select(1, col);
        column.copy_(at::where(better, found.select(1, col), column));
      };
      keep(best_scale, scale);
      keep(best_zero, zero);
    }
  }
  return {best_scale, best_zero};
}

}  // namespace qat::solvers
