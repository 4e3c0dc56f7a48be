#include "qat/ops/choose_qparams.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/parameters.h"

namespace qat {

bool check_choose_qparams(const at::Tensor& x, const Quantizer& quantizer, std::string_view method,
                          const OptionalTensor& importance, const OptionalTensor& outer_scale) {
  check_input("choose_qparams", x);
  TORCH_CHECK_VALUE(quantizer.active(), "[choose_qparams] quantizer must not be empty.");
  TORCH_CHECK_VALUE(method == "minmax" || method == "mse",
                    "[choose_qparams] method must be minmax or mse, but is ", method, ".");
  if (outer_scale) check_device("choose_qparams", "outer_scale", *outer_scale, x);
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
  if (outer_scale) check_device("round_qparams", "outer_scale", *outer_scale, scale);
  if (!zero_point) return;
  check_device("round_qparams", "zero_point", *zero_point, scale);
  TORCH_CHECK_TYPE(zero_point->scalar_type() == at::kFloat,
                   "[round_qparams] zero_point must be float32, but is ", zero_point->scalar_type(),
                   ".");
  TORCH_CHECK_VALUE(zero_point->sym_sizes() == scale.sym_sizes(),
                    "[round_qparams] zero_point must have the shape of scale, ", scale.sym_sizes(),
                    ", but has ", zero_point->sym_sizes(), ".");
}

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, std::string_view quantizer,
                                                  std::string_view method,
                                                  const OptionalTensor& importance,
                                                  const OptionalTensor& outer_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::choose_qparams", "")
                             .typed<decltype(choose_qparams)>();
  return op.call(x, quantizer, method, importance, outer_scale);
}

std::tuple<at::Tensor, at::Tensor> round_qparams(const at::Tensor& scale,
                                                 std::string_view quantizer,
                                                 const OptionalTensor& zero_point,
                                                 const OptionalTensor& outer_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::round_qparams", "")
                             .typed<decltype(round_qparams)>();
  return op.call(scale, quantizer, zero_point, outer_scale);
}

std::tuple<at::Tensor, at::Tensor> choose_outer_scales(const at::Tensor& x,
                                                       std::string_view quantizer,
                                                       std::string_view method,
                                                       const OptionalTensor& importance) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::choose_outer_scales", "")
                             .typed<decltype(choose_outer_scales)>();
  return op.call(x, quantizer, method, importance);
}

at::Tensor outer_scales(const at::Tensor& scale, std::string_view quantizer) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::outer_scales", "")
                             .typed<at::Tensor(const at::Tensor&, std::string_view)>();
  return op.call(scale, quantizer);
}

namespace {

at::ScalarType zero_dtype(const Quantizer& quantizer) {
  return quantizer.has_offset() ? at::kFloat : at::kChar;
}

// What each backend computes.
using Found = std::tuple<at::Tensor, at::Tensor>;
using Find = Found(const at::Tensor&, std::string_view, std::string_view, const OptionalTensor&);

Found find_qparams(const at::Tensor& x, std::string_view text, std::string_view method,
                   const OptionalTensor& importance) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::_find_qparams", "")
                             .typed<Find>();
  return op.call(x, text, method, importance);
}

Found find_qparams_meta(const at::Tensor& x, std::string_view text, std::string_view,
                        const OptionalTensor&) {
  const FoundTensors found = empty_parameters(x, Quantizer::parse(text));
  return {found.scale, found.zero_point};
}

Found choose_qparams_kernel(const at::Tensor& x, std::string_view text, std::string_view method,
                            const OptionalTensor& importance, const OptionalTensor& outer_scale) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_choose_qparams(x, quantizer, method, importance, outer_scale);
  const auto [scale, zero_point] = find_qparams(x, text, method, importance);
  if (!quantizer.has_outer_scale()) return {scale, zero_point};
  const OptionalTensor offset = quantizer.has_offset() ? OptionalTensor(zero_point) : std::nullopt;
  return round_qparams(scale, text, offset, outer_scale);
}

Found choose_outer_scales_kernel(const at::Tensor& x, std::string_view text,
                                 std::string_view method, const OptionalTensor& importance) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_choose_qparams(x, quantizer, method, importance, std::nullopt);
  const auto [scale, zero_point] = find_qparams(x, text, method, importance);
  return {outer_scales(scale, text), quantizer.has_offset() ? outer_scales(zero_point, text)
                                                            : at::empty({0}, scale.options())};
}

at::Tensor outer_scales_kernel(const at::Tensor& scale, std::string_view text) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_round_qparams(scale, quantizer, std::nullopt, std::nullopt);
  TORCH_CHECK_VALUE(quantizer.has_outer_scale(),
                    "[outer_scales] the quantizer must have outer scales, but is \"", text, "\".");
  return outer_scales(scale.detach(), quantizer);
}

std::tuple<at::Tensor, at::Tensor> round_qparams_meta(const at::Tensor& scale,
                                                      std::string_view text,
                                                      const OptionalTensor& zero_point,
                                                      const OptionalTensor& outer_scale) {
  const Quantizer quantizer = Quantizer::parse(text);
  check_round_qparams(scale, quantizer, zero_point, outer_scale);
  return {at::empty_like(scale, at::MemoryFormat::Contiguous),
          at::empty_like(scale, scale.options().dtype(zero_dtype(quantizer)),
                         at::MemoryFormat::Contiguous)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "choose_qparams(Tensor x, str quantizer, str method=\"minmax\", Tensor? importance=None, "
      "Tensor? outer_scale=None) -> (Tensor, Tensor)");
  m.def(
      "round_qparams(Tensor scale, str quantizer, Tensor? zero_point=None, "
      "Tensor? outer_scale=None) -> (Tensor, Tensor)");
  m.def(
      "choose_outer_scales(Tensor x, str quantizer, str method=\"minmax\", "
      "Tensor? importance=None) -> (Tensor, Tensor)");
  m.def("outer_scales(Tensor scale, str quantizer) -> Tensor");
  m.def(
      "_find_qparams(Tensor x, str quantizer, str method, Tensor? importance) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("choose_qparams", &choose_qparams_kernel);
  m.impl("choose_outer_scales", &choose_outer_scales_kernel);
  m.impl("outer_scales", &outer_scales_kernel);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("_find_qparams", &find_qparams_meta);
  m.impl("round_qparams", &round_qparams_meta);
}

}  // namespace qat
