#include "qat/ops/checks.h"

namespace qat {
namespace {

c10::SymInt blocks_along(const c10::SymInt& axis, int64_t block) {
  if (block == -1)
    return axis.sym_eq(0).guard_bool(__FILE__, __LINE__) ? c10::SymInt(0) : c10::SymInt(1);
  return (axis + (block - 1)) / block;
}

void check_entries(const char* op, const char* name, const at::Tensor& entries, const at::Tensor& x,
                   at::ScalarType dtype, at::IntArrayRef block) {
  TORCH_CHECK_TYPE(entries.scalar_type() == dtype, "[", op, "] ", name, " must be ", dtype,
                   ", but is ", entries.scalar_type(), ".");
  TORCH_CHECK_VALUE(entries.device() == x.device(), "[", op, "] ", name, " must be on ", x.device(),
                    " like x, but is on ", entries.device(), ".");
  const auto [rows, cols] = grid_sizes(x, block);
  TORCH_CHECK_VALUE(
      entries.dim() == 2 && entries.sym_size(0) == rows && entries.sym_size(1) == cols, "[", op,
      "] ", name, " must have shape [", rows, ", ", cols, "], one entry per block of x, but has ",
      entries.sym_sizes(), ".");
}

}  // namespace

std::pair<c10::SymInt, c10::SymInt> matrix_sizes(const at::Tensor& x) {
  if (x.dim() == 0) return {1, 1};
  c10::SymInt rows = 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis) rows = rows * x.sym_size(axis);
  return {rows, x.sym_size(-1)};
}

std::pair<c10::SymInt, c10::SymInt> grid_sizes(const at::Tensor& x, at::IntArrayRef block) {
  const auto [rows, cols] = matrix_sizes(x);
  return {blocks_along(rows, block[0]), blocks_along(cols, block[1])};
}

BlockLayout layout_of(const at::Tensor& x, at::IntArrayRef block) {
  const auto [rows, cols] = matrix_sizes(x);
  return make_layout(rows.expect_int(), cols.expect_int(), block[0], block[1]);
}

Grid parse_grid(const char* op, std::string_view name) {
  if (name == "narrow") return Grid::narrow;
  if (name == "full") return Grid::full;
  if (name == "signed") return Grid::extreme;
  if (name == "asymmetric") return Grid::asymmetric;
  if (name == "fp8_e4m3") return Grid::e4m3;
  if (name == "fp8_e5m2") return Grid::e5m2;
  TORCH_CHECK_VALUE(
      false, "[", op,
      "] grid must be narrow, full, signed, asymmetric, fp8_e4m3 or fp8_e5m2, but is ", name, ".");
}

const char* grid_name(Grid grid) {
  switch (grid) {
    case Grid::narrow:
      return "narrow";
    case Grid::full:
      return "full";
    case Grid::extreme:
      return "signed";
    case Grid::asymmetric:
      return "asymmetric";
    case Grid::e4m3:
      return "fp8_e4m3";
    case Grid::e5m2:
      return "fp8_e5m2";
  }
  return "unknown";
}

void check_input(const char* op, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "[", op,
                   "] x must be float32, float16 or bfloat16, but is ", dtype, ".");
}

void check_block(const char* op, at::IntArrayRef block) {
  TORCH_CHECK_VALUE(block.size() == 2, "[", op, "] block must have two sides, but has ",
                    block.size(), ".");
  for (const int64_t side : block) {
    TORCH_CHECK_VALUE(side == -1 || side >= 1, "[", op,
                      "] block sides must be positive, or -1 for the whole axis, but are ", block,
                      ".");
  }
}

void check_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE(bits >= 2 && bits <= 8, "[", op, "] bits must be 2 to 8, but is ", bits, ".");
}

void check_range(const char* op, int64_t quant_min, int64_t quant_max) {
  TORCH_CHECK_VALUE(-128 <= quant_min && quant_min < quant_max && quant_max <= 127, "[", op,
                    "] quant_min must be below quant_max, both in [-128, 127], but they are ",
                    quant_min, " and ", quant_max, ".");
}

void check_range_or_float8(const char* op, int64_t quant_min, int64_t quant_max) {
  if (quant_min == -quant_max && (quant_max == 448 || quant_max == 57344)) return;
  check_range(op, quant_min, quant_max);
}

void check_integer_grid(const char* op, std::string_view grid) {
  TORCH_CHECK_VALUE(!is_float8(parse_grid(op, grid)), "[", op,
                    "] grid must be one of integers, but is ", grid, ".");
}

void check_scale_dtype(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "[", op,
                    "] scale_dtype must be float32, float16 or bfloat16, but is ", dtype, ".");
}

void check_qparams(const char* op, const at::Tensor& x, const at::Tensor& scale,
                   const std::optional<at::Tensor>& zero_point, at::ScalarType zero_point_dtype,
                   at::IntArrayRef block) {
  check_entries(op, "scale", scale, x, at::kFloat, block);
  if (zero_point) check_entries(op, "zero_point", *zero_point, x, zero_point_dtype, block);
}

void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& x) {
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), "[", op, "] grad must be ",
                   x.scalar_type(), " like x, but is ", grad.scalar_type(), ".");
  TORCH_CHECK_VALUE(grad.sym_sizes() == x.sym_sizes(), "[", op, "] grad must have the shape of x, ",
                    x.sym_sizes(), ", but has ", grad.sym_sizes(), ".");
}

void check_gradient_inplace(const char* op, const at::Tensor& grad, const at::Tensor& x) {
  check_gradient(op, grad, x);
  TORCH_CHECK_VALUE(grad.is_contiguous(), "[", op, "] grad must be contiguous to be written over.");
}

void check_result_dtype(const char* op, const at::Tensor& x, std::optional<at::ScalarType> dtype) {
  if (!dtype || *dtype == x.scalar_type()) return;
  const bool narrows =
      x.scalar_type() == at::kFloat && (*dtype == at::kHalf || *dtype == at::kBFloat16);
  TORCH_CHECK_TYPE(narrows, "[", op, "] dtype must be that of x, ", x.scalar_type(),
                   ", or for float32 x float16 or bfloat16, but is ", *dtype, ".");
}

}  // namespace qat
