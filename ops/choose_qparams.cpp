#include "qat/ops/choose_qparams.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include <array>

#include "qat/ops/absmean.h"
#include "qat/ops/arguments.h"
#include "qat/ops/call.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

// The outer scales of a grid of blocks, whose sizes may be symbols.
std::array<c10::SymInt, 2> outer_sizes(const Quantizer& quantizer,
                                       const std::pair<c10::SymInt, c10::SymInt>& grid) {
  const auto count = [&](const c10::SymInt& entries, size_t axis) -> c10::SymInt {
    if (quantizer.outer_block[axis] == -1)
      return TORCH_GUARD_OR_FALSE(entries.sym_eq(0)) ? c10::SymInt(0) : c10::SymInt(1);
    const int64_t blocks = quantizer.outer_block[axis] / quantizer.block[axis];
    return (entries + (blocks - 1)) / blocks;
  };
  return {count(grid.first, 0), count(grid.second, 1)};
}

// What is given beside the grid `scale` or x has: one entry for all, or one per outer block.
void check_outer(const char* op, const char* name, const OptionalTensor& outer,
                 const Quantizer& quantizer, const at::Tensor& beside,
                 const std::pair<c10::SymInt, c10::SymInt>& grid) {
  if (!outer) return;
  check_device(op, name, *outer, beside);
  TORCH_CHECK_VALUE(quantizer.has_outer_scale(), "[", op, "] ", name, " must not be given for ",
                    quantizer.text(), ".");
  TORCH_CHECK_TYPE(outer->scalar_type() == at::kFloat, "[", op, "] ", name,
                   " must be float32, but is ", outer->scalar_type(), ".");
  const auto [rows, cols] = outer_sizes(quantizer, grid);
  TORCH_CHECK_VALUE(
      outer->sym_numel() == 1 ||
          (outer->dim() == 2 && outer->sym_size(0) == rows && outer->sym_size(1) == cols),
      "[", op, "] ", name, " must have shape [", rows, ", ", cols,
      "], one entry per outer block, or one entry for all, but has ", outer->sym_sizes(), ".");
}

void check_method(const Quantizer& quantizer, std::string_view method) {
  if (method == "absmean") {
    Quantizer ternary = quantizer;
    ternary.mode = Quantizer::Mode::absmean;
    Quantizer::parse(ternary.text());
    return;
  }
  TORCH_CHECK_VALUE(method == "minmax" || method == "mse",
                    "[choose_qparams] method must be minmax, mse or absmean, but is ", method, ".");
}

// True for "mse".
bool check_choose_qparams(const at::Tensor& x, const Quantizer& quantizer, std::string_view method,
                          const OptionalTensor& importance, const OptionalTensor& outer_scale,
                          const OptionalTensor& outer_offset) {
  check_input("choose_qparams", x);
  TORCH_CHECK_VALUE(quantizer.active(), "[choose_qparams] quantizer must not be empty.");
  check_method(quantizer, method);
  const auto grid = grid_sizes(x, quantizer.block);
  check_outer("choose_qparams", "outer_scale", outer_scale, quantizer, x, grid);
  check_outer("choose_qparams", "outer_offset", outer_offset, quantizer, x, grid);
  if (!importance) return method == "mse";
  check_device("choose_qparams", "importance", *importance, x);
  TORCH_CHECK_TYPE(importance->scalar_type() == at::kFloat,
                   "[choose_qparams] importance must be float32, but is ",
                   importance->scalar_type(), ".");
  TORCH_CHECK_VALUE(importance->dim() == 1 && importance->sym_size(0) == matrix_sizes(x).second,
                    "[choose_qparams] importance must have one entry per column of x, ",
                    matrix_sizes(x).second, ", but is ", importance->sym_sizes(), ".");
  return method == "mse";
}

void check_round_qparams(const at::Tensor& scale, const Quantizer& quantizer,
                         const OptionalTensor& zero_point, const OptionalTensor& outer_scale) {
  TORCH_CHECK_VALUE(quantizer.active(), "[round_qparams] quantizer must not be empty.");
  TORCH_CHECK_TYPE(scale.scalar_type() == at::kFloat,
                   "[round_qparams] scale must be float32, but is ", scale.scalar_type(), ".");
  TORCH_CHECK_VALUE(!quantizer.has_outer_scale() || scale.dim() == 2,
                    "[round_qparams] scale must have one row per row of blocks, but is ",
                    scale.sym_sizes(), ".");
  if (outer_scale)
    check_outer("round_qparams", "outer_scale", outer_scale, quantizer, scale,
                {scale.sym_size(0), scale.sym_size(1)});
  if (!zero_point) return;
  check_device("round_qparams", "zero_point", *zero_point, scale);
  TORCH_CHECK_TYPE(zero_point->scalar_type() == at::kFloat,
                   "[round_qparams] zero_point must be float32, but is ", zero_point->scalar_type(),
                   ".");
  TORCH_CHECK_VALUE(zero_point->sym_sizes() == scale.sym_sizes(),
                    "[round_qparams] zero_point must have the shape of scale, ", scale.sym_sizes(),
                    ", but has ", zero_point->sym_sizes(), ".");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, std::string_view quantizer,
                                                  std::string_view method,
                                                  const OptionalTensor& importance,
                                                  const OptionalTensor& outer_scale,
                                                  const OptionalTensor& outer_offset) {
  return call<"qat::choose_qparams", decltype(choose_qparams)>(x, quantizer, method, importance,
                                                               outer_scale, outer_offset);
}

std::tuple<at::Tensor, at::Tensor> round_qparams(const at::Tensor& scale,
                                                 std::string_view quantizer,
                                                 const OptionalTensor& zero_point,
                                                 const OptionalTensor& outer_scale) {
  return call<"qat::round_qparams", decltype(round_qparams)>(scale, quantizer, zero_point,
                                                             outer_scale);
}

std::tuple<at::Tensor, at::Tensor> choose_outer_scales(const at::Tensor& x,
                                                       std::string_view quantizer,
                                                       std::string_view method,
                                                       const OptionalTensor& importance) {
  return call<"qat::choose_outer_scales", decltype(choose_outer_scales)>(x, quantizer, method,
                                                                         importance);
}

at::Tensor outer_scales(const at::Tensor& scale, std::string_view quantizer) {
  return call<"qat::outer_scales", at::Tensor(const at::Tensor&, std::string_view)>(scale,
                                                                                    quantizer);
}

namespace {

void check_has_outer_scale(const char* op, const Quantizer& quantizer) {
  TORCH_CHECK_VALUE(quantizer.has_outer_scale(), "[", op,
                    "] the quantizer must have outer scales, but is \"", quantizer.text(), "\".");
}

// Room for the outer scales of `scale`, whose sizes may be symbols.
at::Tensor empty_outer_scales(const at::Tensor& scale, const Quantizer& quantizer) {
  const auto [rows, cols] = outer_sizes(quantizer, {scale.sym_size(0), scale.sym_size(1)});
  return at::empty_symint({rows, cols}, scale.options());
}

at::Tensor outer_scales_kernel(const at::Tensor& scale, std::string_view text) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_round_qparams(scale, quantizer, std::nullopt, std::nullopt);
  check_has_outer_scale("outer_scales", quantizer);
  if (scale.is_meta()) return empty_outer_scales(scale, quantizer);
  return outer_scales(scale.detach(), quantizer);
}

FoundTensors find(const at::Tensor& x, const Quantizer& quantizer, ChooseKernel choose,
                  const Choosing& how) {
  const c10::DeviceGuard on_device(x.device());
  const FoundTensors found = empty_parameters(x, quantizer);
  if (!x.is_meta() && found.scale.numel() != 0) choose(Blocks(x, quantizer), how, found);
  return found;
}

// Scales by their ranges make outer ones; under these, (9) rounds them, or what is stored is chosen.
FoundTensors find_under_outer(const at::Tensor& x, const Quantizer& quantizer, ChooseKernel choose,
                              Choosing how, const OptionalTensor& outer_scale,
                              const OptionalTensor& outer_offset) {
  const FoundTensors by_range = find(x, quantizer, choose, {});
  if (x.is_meta() || by_range.scale.numel() == 0) return by_range;
  const auto offset = quantizer.has_offset() ? OptionalTensor(by_range.zero_point) : std::nullopt;
  const bool rounds = !how.searching && !quantizer.takes_better() && !outer_offset;
  if (rounds && quantizer.grid != Grid::asymmetric) {
    const auto [scale, zero] = round_qparams(by_range.scale, quantizer.text(), offset, outer_scale);
    return {scale, zero};
  }
  const LearnedTensors under =
      learned_parameters(quantizer, by_range.scale, offset, outer_scale, outer_offset);
  how.outer_scale = under.outer_scale;
  how.outer_offset = under.outer_offset;
  return find(x, quantizer, choose, how);
}

// Room for what `scale` and its zero points are rounded to.
FoundTensors room_like(const at::Tensor& scale, const Quantizer& quantizer) {
  const auto room = [&](at::ScalarType dtype) {
    return at::empty_like(scale, scale.options().dtype(dtype), at::MemoryFormat::Contiguous);
  };
  return {room(at::kFloat), room(quantizer.zero_dtype())};
}

}  // namespace

void implement_choose_qparams(torch::Library& m, ChooseKernel choose) {
  m.impl("choose_qparams",
         [choose](const at::Tensor& x, std::string_view text, std::string_view method,
                  const OptionalTensor& importance, const OptionalTensor& outer_scale,
                  const OptionalTensor& outer_offset) -> std::tuple<at::Tensor, at::Tensor> {
           const Quantizer quantizer = Quantizer::parse(text);
           const bool searching =
               check_choose_qparams(x, quantizer, method, importance, outer_scale, outer_offset);
           if (method == "absmean" && !x.is_meta()) {
             const c10::DeviceGuard on_device(x.device());
             return round_qparams(absmean(x, quantizer.block), text);
           }
           // (9a) counts all columns alike.
           const Choosing how{searching, searching ? contiguous(importance) : std::nullopt};
           const FoundTensors found =
               quantizer.has_outer_scale()
                   ? find_under_outer(x, quantizer, choose, how, outer_scale, outer_offset)
                   : find(x, quantizer, choose, how);
           return {found.scale, found.zero_point};
         });
  m.impl("choose_outer_scales",
         [choose](const at::Tensor& x, std::string_view text, std::string_view method,
                  const OptionalTensor& importance) -> std::tuple<at::Tensor, at::Tensor> {
           const Quantizer quantizer = Quantizer::parse(text);
           check_choose_qparams(x, quantizer, method, importance, std::nullopt, std::nullopt);
           check_has_outer_scale("choose_outer_scales", quantizer);
           const FoundTensors found = find(x, quantizer, choose, {});
           const auto outer = [&](const at::Tensor& of) {
             return x.is_meta() ? empty_outer_scales(of, quantizer) : outer_scales(of, quantizer);
           };
           return {outer(found.scale), quantizer.has_offset()
                                           ? outer(found.zero_point)
                                           : at::empty({0}, found.scale.options())};
         });
}

void implement_round_qparams(torch::Library& m, RoundKernel round) {
  m.impl("round_qparams",
         [round](const at::Tensor& scale, std::string_view text, const OptionalTensor& zero_point,
                 const OptionalTensor& outer_scale) -> std::tuple<at::Tensor, at::Tensor> {
           const Quantizer quantizer = Quantizer::parse(text);
           check_round_qparams(scale, quantizer, zero_point, outer_scale);
           const c10::DeviceGuard on_device(scale.device());
           const FoundTensors to = room_like(scale, quantizer);
           if (!scale.is_meta() && scale.numel() != 0)
             round(learned_parameters(quantizer, scale, zero_point, outer_scale), quantizer, to);
           return {to.scale, to.zero_point};
         });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "choose_qparams(Tensor x, str quantizer, str method=\"minmax\", Tensor? importance=None, "
      "Tensor? outer_scale=None, Tensor? outer_offset=None) -> (Tensor, Tensor)");
  m.def(
      "round_qparams(Tensor scale, str quantizer, Tensor? zero_point=None, "
      "Tensor? outer_scale=None) -> (Tensor, Tensor)");
  m.def(
      "choose_outer_scales(Tensor x, str quantizer, str method=\"minmax\", "
      "Tensor? importance=None) -> (Tensor, Tensor)");
  m.def("outer_scales(Tensor scale, str quantizer) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("outer_scales", &outer_scales_kernel);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  implement_choose_qparams(m, nullptr);
  implement_round_qparams(m, nullptr);
}

}  // namespace qat
