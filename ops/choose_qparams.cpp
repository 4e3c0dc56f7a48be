#include "qat/ops/choose_qparams.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

bool check_choose_qparams(const at::Tensor& x, at::IntArrayRef block, int64_t bits,
                          std::string_view method, at::ScalarType scale_dtype,
                          const std::optional<at::Tensor>& importance) {
  check_input("choose_qparams", x);
  check_block("choose_qparams", block);
  check_bits("choose_qparams", bits);
  check_scale_dtype("choose_qparams", scale_dtype);
  TORCH_CHECK_VALUE(method == "minmax" || method == "mse",
                    "[choose_qparams] method must be minmax or mse, but is ", method, ".");
  if (importance) {
    TORCH_CHECK_TYPE(importance->scalar_type() == at::kFloat,
                     "[choose_qparams] importance must be float32, but is ",
                     importance->scalar_type(), ".");
    TORCH_CHECK_VALUE(importance->dim() == 1 && importance->sym_size(0) == matrix_sizes(x).second,
                      "[choose_qparams] importance must have one entry per column of x, ",
                      matrix_sizes(x).second, ", but is ", importance->sym_sizes(), ".");
  }
  return method == "mse";
}

void check_round_qparams(const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                         int64_t quant_min, int64_t quant_max, at::ScalarType scale_dtype) {
  check_range("round_qparams", quant_min, quant_max);
  check_scale_dtype("round_qparams", scale_dtype);
  TORCH_CHECK_TYPE(scale.scalar_type() == at::kFloat,
                   "[round_qparams] scale must be float32, but is ", scale.scalar_type(), ".");
  if (!zero_point) return;
  TORCH_CHECK_TYPE(zero_point->scalar_type() == at::kFloat,
                   "[round_qparams] zero_point must be float32, but is ", zero_point->scalar_type(),
                   ".");
  TORCH_CHECK_VALUE(zero_point->sym_sizes() == scale.sym_sizes(),
                    "[round_qparams] zero_point must have the shape of scale, ", scale.sym_sizes(),
                    ", but has ", zero_point->sym_sizes(), ".");
}

std::tuple<at::Tensor, at::Tensor> choose_qparams(const at::Tensor& x, at::IntArrayRef block,
                                                  int64_t bits, std::string_view grid,
                                                  std::string_view method,
                                                  at::ScalarType scale_dtype,
                                                  const std::optional<at::Tensor>& importance) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::choose_qparams", "")
                             .typed<decltype(choose_qparams)>();
  return op.call(x, block, bits, grid, method, scale_dtype, importance);
}

std::tuple<at::Tensor, at::Tensor> round_qparams(const at::Tensor& scale,
                                                 const std::optional<at::Tensor>& zero_point,
                                                 int64_t quant_min, int64_t quant_max,
                                                 at::ScalarType scale_dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::round_qparams", "")
                             .typed<decltype(round_qparams)>();
  return op.call(scale, zero_point, quant_min, quant_max, scale_dtype);
}

namespace {

std::tuple<at::Tensor, at::Tensor> choose_qparams_meta(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid,
    std::string_view method, at::ScalarType scale_dtype,
    const std::optional<at::Tensor>& importance) {
  check_choose_qparams(x, block, bits, method, scale_dtype, importance);
  parse_grid("choose_qparams", grid);
  const auto [rows, cols] = grid_sizes(x, block);
  return {at::empty_symint({rows, cols}, x.options().dtype(at::kFloat)),
          at::empty_symint({rows, cols}, x.options().dtype(at::kChar))};
}

std::tuple<at::Tensor, at::Tensor> round_qparams_meta(const at::Tensor& scale,
                                                      const std::optional<at::Tensor>& zero_point,
                                                      int64_t quant_min, int64_t quant_max,
                                                      at::ScalarType scale_dtype) {
  check_round_qparams(scale, zero_point, quant_min, quant_max, scale_dtype);
  return {at::empty_like(scale, at::MemoryFormat::Contiguous),
          at::empty_like(scale, scale.options().dtype(at::kChar), at::MemoryFormat::Contiguous)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "choose_qparams(Tensor x, int[2] block, int bits, str grid, str method, "
      "ScalarType scale_dtype, Tensor? importance=None) -> (Tensor, Tensor)");
  m.def(
      "round_qparams(Tensor scale, Tensor? zero_point, int quant_min, int quant_max, "
      "ScalarType scale_dtype) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) {
  m.impl("choose_qparams", &choose_qparams_meta);
  m.impl("round_qparams", &round_qparams_meta);
}

}  // namespace qat
