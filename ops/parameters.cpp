#include "qat/ops/parameters.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include "qat/ops/arguments.h"
#include "qat/ops/choose_qparams.h"

namespace qat {
namespace {

// Blocks that share an outer scale, along one axis.
int64_t blocks_in_outer(int64_t outer, int64_t block, int64_t axis) {
  return outer == -1 ? std::max<int64_t>(axis, 1) : outer / block;
}

std::array<int64_t, 2> outer_shape(const at::Tensor& scale, const Quantizer& quantizer) {
  return {blocks_in_outer(quantizer.outer_block[0], quantizer.block[0], scale.size(0)),
          blocks_in_outer(quantizer.outer_block[1], quantizer.block[1], scale.size(1))};
}

// The largest entry of each part of `rows` x `cols`; the last ones may be short.
at::Tensor largest_in(const at::Tensor& x, int64_t rows, int64_t cols) {
  if (rows == x.size(0) && cols == x.size(1) && x.numel() > 0) return x.max().view({1, 1});
  const int64_t below = (rows - x.size(0) % rows) % rows, right = (cols - x.size(1) % cols) % cols;
  const at::Tensor padded = at::constant_pad_nd(x, {0, right, 0, below});
  return padded.reshape({padded.size(0) / rows, rows, padded.size(1) / cols, cols}).amax({1, 3});
}

}  // namespace

at::Tensor spread_outer(const at::Tensor& outer, const at::Tensor& scale,
                        const Quantizer& quantizer) {
  if (outer.numel() == 1) return outer.contiguous();
  const auto [rows, cols] = outer_shape(scale, quantizer);
  return outer.repeat_interleave(rows, 0)
      .slice(0, 0, scale.size(0))
      .repeat_interleave(cols, 1)
      .slice(1, 0, scale.size(1))
      .contiguous();
}

FoundTensors empty_parameters(const at::Tensor& x, const Quantizer& quantizer) {
  const auto [rows, cols] = grid_sizes(x, quantizer.block);
  const auto options = x.options();
  return {at::empty_symint({rows, cols}, options.dtype(at::kFloat)),
          at::empty_symint({rows, cols}, options.dtype(quantizer.zero_dtype()))};
}

FoundTensors no_parameters(const at::Tensor& x, const Quantizer& quantizer) {
  return {at::empty({0}, x.options().dtype(at::kFloat)),
          at::empty({0}, x.options().dtype(quantizer.zero_dtype()))};
}

LearnedTensors learned_parameters(const Quantizer& quantizer, const at::Tensor& scale,
                                  const OptionalTensor& zero_point,
                                  const OptionalTensor& outer_scale,
                                  const OptionalTensor& outer_offset) {
  LearnedTensors learned{scale.contiguous(), contiguous(zero_point), {}, {}};
  if (!quantizer.has_outer_scale() || scale.numel() == 0) return learned;
  const auto spread = [&](const at::Tensor& outer) {
    return spread_outer(outer, scale, quantizer);
  };
  learned.outer_scale = spread(outer_scale ? *outer_scale : outer_scales(scale, quantizer));
  if (zero_point && quantizer.has_offset())
    learned.outer_offset =
        spread(outer_offset ? *outer_offset : outer_scales(*zero_point, quantizer));
  return learned;
}

StoredTensors stored_parameters(const at::Tensor& x, const Quantizer& quantizer,
                                const Quantizer::Parameters& given, Learned learned) {
  // In float32; a float's levels have none, whatever is given.
  const auto shift = [&](const OptionalTensor& zero) {
    return zero && !is_named(quantizer.grid) ? OptionalTensor(zero->to(at::kFloat).contiguous())
                                             : std::nullopt;
  };
  if (quantizer.finds() && !given.scale) {
    const auto [found, zero] =
        choose_qparams(x, quantizer.text(), quantizer.finder(), std::nullopt, given.outer_scale);
    return {found, quantizer.shifts() ? shift(zero) : std::nullopt, zero};
  }
  if (quantizer.mode != Quantizer::Mode::learned)
    return {given.scale->contiguous(), shift(given.zero_point),
            given.zero_point.value_or(at::Tensor())};
  if (learned == Learned::as_given && !quantizer.has_outer_scale())
    return {given.scale->contiguous(), shift(given.zero_point), {}, false};
  const auto [rounded, zero] =
      round_qparams(*given.scale, quantizer.text(), given.zero_point, given.outer_scale);
  return {rounded, given.zero_point ? shift(zero) : std::nullopt, {}};
}

namespace {

// The least power of two that is no less, numerics.md (7e): by bits, as the device has it.
at::Tensor power_of_two_above(const at::Tensor& outer) {
  constexpr int64_t kMantissa = 0x7FFFFF;
  return outer.contiguous().view(at::kInt).add(kMantissa).bitwise_and(~kMantissa).view(at::kFloat);
}

}  // namespace

at::Tensor outer_scales(const at::Tensor& scale, const Quantizer& quantizer) {
  const auto [rows, cols] = outer_shape(scale, quantizer);
  const at::Tensor largest = largest_in(scale.abs(), rows, cols);
  const double least = quantizer.outer_dtype == at::kHalf ? 0x1p-14 : 0x1p-100;
  const at::Tensor outer = largest.div(largest_under_outer(quantizer.scale_code)).clamp_min_(least);
  const at::Tensor stored = is_e4m3(quantizer.scale_code)
                                ? power_of_two_above(outer)
                                : outer.to(quantizer.outer_dtype).to(at::kFloat);
  // Where all blocks are zeros there is nothing to measure.
  return stored.masked_fill(largest.eq(0), 1.0);
}

}  // namespace qat
