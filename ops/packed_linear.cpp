#include "qat/ops/packed_linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

// For devices without a kernel of their own: the weight exists while it is multiplied.
at::Tensor packed_linear_dequantized(const at::Tensor& x, const at::Tensor& panels,
                                     const at::Tensor& scale,
                                     const std::optional<at::Tensor>& zero_point,
                                     const std::optional<at::Tensor>& bias, int64_t bits,
                                     int64_t group_size, int64_t out) {
  const PanelLayout layout =
      check_packed_linear(x, panels, scale, zero_point, bias, bits, group_size, out);
  const at::Tensor codes = unpack_panels(panels, bits, group_size, out, layout.cols);
  const at::Tensor scales = unpack_panel_values(scale, out).to(at::kFloat);
  const auto zeros =
      zero_point ? std::optional(unpack_panel_values(*zero_point, out)) : std::nullopt;
  const int64_t block[] = {1, group_size};
  return at::linear(x, dequantize(codes, scales, zeros, block, x.scalar_type()), bias);
}

at::Tensor packed_linear_meta(const at::Tensor& x, const at::Tensor&, const at::Tensor&,
                              const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                              int64_t, int64_t, int64_t out) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = out;
  return at::empty_symint(sizes, x.options());
}

}  // namespace

PanelLayout check_packed_linear(const at::Tensor& x, const at::Tensor& panels,
                                const at::Tensor& scale,
                                const std::optional<at::Tensor>& zero_point,
                                const std::optional<at::Tensor>& bias, int64_t bits,
                                int64_t group_size, int64_t out) {
  check_input("packed_linear", x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "[packed_linear] x must be [..., in], but is a scalar.");
  check_panel_layout("packed_linear", bits, group_size, x.sym_size(-1));
  check_float("packed_linear", "scale", scale.scalar_type());
  const PanelLayout layout{out, x.size(-1), group_size, static_cast<int>(bits)};
  const int64_t rows = PanelLayout::kRows;
  TORCH_CHECK_TYPE(panels.scalar_type() == at::kInt,
                   "[packed_linear] panels must be int32, but is ", panels.scalar_type(), ".");
  TORCH_CHECK_VALUE(panels.sizes() == at::IntArrayRef({layout.panels(), layout.words(), rows}),
                    "[packed_linear] panels must be [", layout.panels(), ", ", layout.words(), ", ",
                    rows, "] for ", out, " rows and inputs of ", layout.cols, " features, but is ",
                    panels.sizes(), ".");
  const auto grid = {layout.panels(), layout.groups(), rows};
  TORCH_CHECK_VALUE(scale.sizes() == at::IntArrayRef(grid), "[packed_linear] scale must be [",
                    layout.panels(), ", ", layout.groups(), ", ", rows, "], but is ", scale.sizes(),
                    ".");
  TORCH_CHECK_VALUE(!zero_point || (zero_point->scalar_type() == at::kChar &&
                                    zero_point->sizes() == scale.sizes()),
                    "[packed_linear] zero_point must be int8 and shaped like scale.");
  TORCH_CHECK_VALUE(
      !bias || (bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == out),
      "[packed_linear] bias must be [", out, "] in the dtype of x.");
  for (const at::Tensor& one : {panels, scale, zero_point.value_or(panels), bias.value_or(panels)})
    TORCH_CHECK_VALUE(one.device() == x.device(), "[packed_linear] x is on ", x.device(),
                      ", so everything must be there, but something is on ", one.device(), ".");
  return layout;
}

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point,
                         const std::optional<at::Tensor>& bias, int64_t bits, int64_t group_size,
                         int64_t out) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::packed_linear", "")
                             .typed<decltype(packed_linear)>();
  return op.call(x, panels, scale, zero_point, bias, bits, group_size, out);
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "packed_linear(Tensor x, Tensor panels, Tensor scale, Tensor? zero_point, Tensor? bias, "
      "int bits, int group_size, int out) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("packed_linear", &packed_linear_dequantized);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { m.impl("packed_linear", &packed_linear_meta); }

}  // namespace qat
