#include "qat/ops/fake_quantize_dynamic.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"

namespace qat {

void check_fake_quantize_dynamic(const at::Tensor& x, at::IntArrayRef block, int64_t bits,
                                 at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  check_input("fake_quantize_dynamic", x);
  check_result_dtype("fake_quantize_dynamic", x, dtype);
  check_block("fake_quantize_dynamic", block);
  check_bits("fake_quantize_dynamic", bits);
  check_scale_dtype("fake_quantize_dynamic", scale_dtype);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("qat::fake_quantize_dynamic", "")
                             .typed<decltype(fake_quantize_dynamic)>();
  return op.call(x, block, bits, grid, scale_dtype, dtype);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_meta(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid,
    at::ScalarType scale_dtype, std::optional<at::ScalarType> dtype) {
  check_fake_quantize_dynamic(x, block, bits, scale_dtype, dtype);
  parse_grid("fake_quantize_dynamic", grid);
  const auto [rows, cols] = grid_sizes(x, block);
  return {at::empty_like(x, x.options().dtype(dtype.value_or(x.scalar_type())),
                         at::MemoryFormat::Contiguous),
          at::empty_symint({rows, cols}, x.options().dtype(at::kFloat)),
          at::empty_symint({rows, cols}, x.options().dtype(at::kChar))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize_dynamic(Tensor x, int[2] block, int bits, str grid, ScalarType scale_dtype, "
      "*, "
      "ScalarType? dtype=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_meta); }

}  // namespace qat
