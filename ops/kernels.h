#pragma once

// What a backend brings: its kernels, and how they are launched. The rest of an operator is that of
// all backends: ops/<op>.cpp checks the arguments, makes room for the results and registers the
// whole under the key of `m`. Meta tensors get the room alone, and their backend has no kernels.

#include <torch/library.h>

#include "qat/ops/api.h"
#include "qat/ops/parameters.h"

namespace qat {

// A contiguous tensor, cut into the blocks of a quantizer.
struct Blocks {
  at::Tensor x;
  Quantizer quantizer;
  BlockLayout layout{};  // of a meta tensor, whose sizes may not be known, none

  Blocks(const at::Tensor& tensor, const Quantizer& by) : x(tensor.contiguous()), quantizer(by) {
    if (!x.is_meta()) layout = layout_of(tensor, by.block);
  }
};

// What a zero point does to an element before it is rounded and after.
enum class Shift { none, level, offset };

// Calls body with that and with the levels as constants of the compiler's. Unless it `shifts`, all
// zero points are 0.
template <typename Body>
void with_shift(const Quantizer& quantizer, bool shifts, const Body& body) {
  using None = std::integral_constant<Shift, Shift::none>;
  using Level = std::integral_constant<Shift, Shift::level>;
  using Offset = std::integral_constant<Shift, Shift::offset>;
  const Levels levels = quantizer.levels();
  if (!levels.whole() || !shifts)
    return with_kind(levels, [&](const auto& kind) { body(None(), kind); });
  const WholeLevels whole = whole_levels(levels);
  quantizer.has_offset() ? body(Offset(), whole) : body(Level(), whole);
}

struct FakeQuantizeKernels {
  // In one pass: the parameters of blocks, and what they round `blocks.x` to. Whether they can.
  bool (*finds)(const Blocks& blocks);
  void (*find_and_round)(const Blocks& blocks, const OptionalTensor& outer_scale,
                         const FoundTensors& found, const at::Tensor& y);
  Learned learned;
  void (*round)(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& y);
};
QAT_API void implement_fake_quantize(torch::Library& m, const FakeQuantizeKernels& kernels);

// What a backward fills: the gradient of x in `x`, which may be `grad` itself, and for learned
// parameters the sums of (5) and (6) over each segment times `factor`, [rows, grid_cols]; those of
// zero points where there are some.
struct GradientTensors {
  at::Tensor grad;
  at::Tensor x;
  at::Tensor scale;
  at::Tensor zero_point;
  float factor;
};
struct BackwardKernels {
  Learned learned;
  void (*backward)(const Blocks& blocks, const StoredTensors& stored,
                   const GradientTensors& gradients);
  // Sums over blocks of several rows times `factor`, [grid_rows, grid_cols], in the order of
  // numerics.md (5), of one term a segment.
  at::Tensor (*sum_rows)(const at::Tensor& terms, const BlockLayout& layout, float factor);
};
QAT_API void implement_fake_quantize_backward(torch::Library& m, const BackwardKernels& kernels);

struct EncodeKernels {
  // In one pass, from blocks of one row. None: the backend has no such kernel.
  void (*find_and_encode)(const Blocks& blocks, const FoundTensors& found, const at::Tensor& codes);
  // Makes NaN of the entries of `scale` whose blocks hold what is not finite.
  void (*encode)(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes,
                 const at::Tensor& scale);
  void (*decode)(const at::Tensor& codes, const BlockLayout& layout, const Quantizer& quantizer,
                 const at::Tensor& scale, const at::Tensor& zero_point, const at::Tensor& y);
};
QAT_API void implement_encode(torch::Library& m, const EncodeKernels& kernels);

// How parameters are chosen: by (9) and (9a) or, `searching`, by (10). Those of a quantizer with outer
// scales are multiples of these, one or one a block; without them they are found by (9), not rounded.
struct Choosing {
  bool searching = false;
  OptionalTensor importance{};
  OptionalTensor outer_scale{};
  OptionalTensor outer_offset{};
};
using ChooseKernel = void (*)(const Blocks& blocks, const Choosing& how, const FoundTensors& found);
QAT_API void implement_choose_qparams(torch::Library& m, ChooseKernel choose);

// (7), (8) and (8b); zero points are 0 where there are none.
using RoundKernel = void (*)(const LearnedTensors& learned, const Quantizer& quantizer,
                             const FoundTensors& to);
QAT_API void implement_round_qparams(torch::Library& m, RoundKernel round);

struct QuantizeKernels {
  void (*quantize)(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes);
  // Zero points of float32 are offsets.
  void (*dequantize)(const at::Tensor& codes, const BlockLayout& layout, const at::Tensor& scale,
                     const OptionalTensor& zero_point, const at::Tensor& y);
};
QAT_API void implement_quantize(torch::Library& m, const QuantizeKernels& kernels);

// Contiguous tensors of quantize_with_feedback.h.
struct Feedback {
  Quantizer quantizer;
  at::Tensor weight, offset, transfer, scale;
  OptionalTensor zero_point;  // or offset, float32
  at::Tensor codes, error, residual;
};
QAT_API void implement_quantize_with_feedback(torch::Library& m,
                                              void (*solve)(const Feedback& feedback));

// Contiguous tensors of kl_divergence.h; `gradient` is read where there is a `share`.
struct Divergence {
  at::Tensor student, teacher;
  float inverse_temperature;
  OptionalTensor counted, share;
  at::Tensor kl, gradient;
};
QAT_API void implement_kl_divergence(torch::Library& m, void (*find)(const Divergence& of));

}  // namespace qat
