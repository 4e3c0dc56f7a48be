#include "qat/ops/checks.h"

namespace qat {
namespace {

// Longer than any axis, and short enough to be added to one.
constexpr int64_t kMostSide = int64_t{1} << 48;

c10::SymInt blocks_along(const c10::SymInt& axis, int64_t block) {
  if (block == -1)
    // A count that is not known yet, such as of routed tokens, is taken for one that is not 0.
    return TORCH_GUARD_OR_FALSE(axis.sym_eq(0)) ? c10::SymInt(0) : c10::SymInt(1);
  return (axis + (block - 1)) / block;
}

void check_entries(const char* op, const char* name, const at::Tensor& entries, const at::Tensor& x,
                   at::ScalarType dtype, at::IntArrayRef block) {
  TORCH_CHECK_TYPE(entries.scalar_type() == dtype, "[", op, "] ", name, " must be ", dtype,
                   ", but is ", entries.scalar_type(), ".");
  check_device(op, name, entries, x);
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

void check_input(const char* op, const at::Tensor& x) { check_float(op, "x", x.scalar_type()); }

void check_block(const char* op, at::IntArrayRef block) {
  TORCH_CHECK_VALUE(block.size() == 2, "[", op, "] block must have two sides, but has ",
                    block.size(), ".");
  for (const int64_t side : block) {
    TORCH_CHECK_VALUE(side == -1 || (side >= 1 && side <= kMostSide), "[", op,
                      "] block sides must be 1 to 2^48, or -1 for the whole axis, but are ", block,
                      ".");
  }
}

void check_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE(bits >= 2 && bits <= 8, "[", op, "] bits must be 2 to 8, but is ", bits, ".");
}

void check_float(const char* op, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "[", op,
                   "] ", name, " must be float32, float16 or bfloat16, but is ", dtype, ".");
}

void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_VALUE(tensor.device() == x.device(), "[", op, "] ", name, " must be on ", x.device(),
                    " like x, but is on ", tensor.device(), ".");
}

void check_parameters(const char* op, const Quantizer& quantizer, const at::Tensor& x,
                      const Quantizer::Parameters& given) {
  using Mode = Quantizer::Mode;
  const auto& [scale, zero_point, outer_scale] = given;
  TORCH_CHECK_VALUE(scale || quantizer.mode == Mode::none || quantizer.finds(), "[", op,
                    "] scale must be given for ", quantizer.text(), ".");
  TORCH_CHECK_VALUE(scale || !zero_point, "[", op, "] zero_point must come with a scale.");
  if (scale) check_entries(op, "scale", *scale, x, at::kFloat, quantizer.block);
  if (zero_point) {
    const bool learned = quantizer.mode == Mode::learned;
    check_entries(op, "zero_point", *zero_point, x, learned ? at::kFloat : quantizer.zero_dtype(),
                  quantizer.block);
  }
  if (!outer_scale) return;
  TORCH_CHECK_VALUE(quantizer.has_outer_scale(), "[", op, "] outer_scale must not be given for ",
                    quantizer.text(), ".");
  check_entries(op, "outer_scale", *outer_scale, x, at::kFloat, quantizer.outer_block);
}

void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& x, bool inplace) {
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), "[", op, "] grad must be ",
                   x.scalar_type(), " like x, but is ", grad.scalar_type(), ".");
  check_device(op, "grad", grad, x);
  TORCH_CHECK_VALUE(grad.sym_sizes() == x.sym_sizes(), "[", op, "] grad must have the shape of x, ",
                    x.sym_sizes(), ", but has ", grad.sym_sizes(), ".");
  TORCH_CHECK_VALUE(!inplace || grad.is_contiguous(), "[", op,
                    "] grad must be contiguous to be written over.");
}

void check_result_dtype(const char* op, const at::Tensor& x, std::optional<at::ScalarType> dtype) {
  if (!dtype || *dtype == x.scalar_type()) return;
  const bool narrows =
      x.scalar_type() == at::kFloat && (*dtype == at::kHalf || *dtype == at::kBFloat16);
  TORCH_CHECK_TYPE(narrows, "[", op, "] dtype must be that of x, ", x.scalar_type(),
                   ", or for float32 x float16 or bfloat16, but is ", *dtype, ".");
}

}  // namespace qat
