#include "qat/ops/kv_cache.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "qat/ops/checks.h"
#include "qat/ops/fake_quantize.h"

namespace qat {
namespace {

using Optional = std::optional<at::Tensor>;

void check_cache(const at::Tensor& x, const Optional& scale, std::string_view granularity,
                 int64_t group_size, int64_t first, ScaleCode code) {
  check_input("fake_quantize_cache", x);
  TORCH_CHECK_VALUE(x.dim() == 4,
                    "[fake_quantize_cache] x must be [batch, heads, tokens, head_size], but is ",
                    x.sym_sizes(), ".");
  TORCH_CHECK_VALUE(first >= 0, "[fake_quantize_cache] first must not be negative, but is ", first,
                    ".");
  const bool grouped = granularity == "group" || granularity == "channel";
  TORCH_CHECK_VALUE(
      grouped || granularity == "tensor" || granularity == "head" || granularity == "token",
      "[fake_quantize_cache] granularity must be tensor, head, token, group or channel, but is ",
      granularity, ".");
  TORCH_CHECK_VALUE(!grouped || group_size > 0,
                    "[fake_quantize_cache] group_size must be positive for granularity ",
                    granularity, ", but is ", group_size, ".");
  TORCH_CHECK_VALUE(granularity != "group" || x.sym_size(3) % group_size == 0,
                    "[fake_quantize_cache] group_size must divide the head size, ", x.sym_size(3),
                    ", but is ", group_size, ".");
  const bool outer = granularity == "group" && code == ScaleCode::e4m3;  // which may be given
  const bool given = granularity == "tensor" || granularity == "head" || (outer && scale);
  const c10::SymInt wanted = granularity == "head" ? x.sym_size(1) : c10::SymInt(1);
  TORCH_CHECK_VALUE(given == scale.has_value() && (!given || scale->sym_numel() == wanted),
                    "[fake_quantize_cache] scale must be given for granularity tensor and head, "
                    "with 1 entry or one a head, and for no other.");
}

// What rounds a matrix whose rows are blocks.
struct RowQuantizer {
  int64_t bits;
  std::string_view grid;
  ScaleCode code = ScaleCode::float32;

  Quantizer with(Quantizer::Mode mode) const {
    Quantizer quantizer;
    quantizer.mode = mode;
    quantizer.grid = parse_grid("fake_quantize_cache", grid);
    quantizer.bits = is_named(quantizer.grid) ? named_bits(quantizer.grid) : static_cast<int>(bits);
    quantizer.block = {1, -1};
    quantizer.scale_code = code;
    return quantizer;
  }
};

// Each row a block, with a scale of its own found from it.
at::Tensor by_rows(const at::Tensor& rows, const RowQuantizer& how) {
  const auto rounded = [&](const at::Tensor& values) {
    return how.with(Quantizer::Mode::minmax)(values, {}, values.scalar_type()).values;
  };
  if (how.grid != "asymmetric" || rows.sym_numel() == 0) return rounded(rows);
  // In float32, so that the offset comes off exactly enough: x is rounded once, at the end. What is
  // not finite is no offset: it comes out as NaN, and its block is rounded as if it were not there.
  const at::Tensor wide = rows.to(at::kFloat);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const at::Tensor values = wide.detach();
  const at::Tensor low = values.masked_fill((values - values).ne(0), kNever).amin(-1, true);
  return (rounded(wide - low) + low).to(rows.scalar_type());
}

// The same, each scale a code times the outer one, which is given.
at::Tensor by_rows_under(const at::Tensor& rows, const at::Tensor& outer, const RowQuantizer& how) {
  Quantizer quantizer = how.with(Quantizer::Mode::minmax);
  quantizer.outer_block = {-1, -1};
  return quantizer(rows, {{}, {}, outer.view({1, 1})}, rows.scalar_type()).values;
}

at::Tensor by_given_scale(const at::Tensor& x, const at::Tensor& scale, const RowQuantizer& how) {
  Quantizer quantizer = how.with(Quantizer::Mode::fixed);
  // A row a head, or one in all.
  const bool one = scale.sym_numel() == 1;
  const at::Tensor rows = one ? x : x.transpose(0, 1).flatten(1);
  const at::Tensor scales = one ? scale.view({1, 1}) : scale.view({-1, 1});
  if (one) quantizer.block = {-1, -1};
  const at::Tensor y = quantizer(rows, {scales, {}, {}}, x.scalar_type()).values;
  if (one) return y;
  return y.view_symint(x.transpose(0, 1).sym_sizes()).transpose(0, 1);
}

at::Tensor by_channel(const at::Tensor& x, int64_t tokens, const RowQuantizer& how) {
  const c10::SymInt complete = x.sym_size(2) / tokens * tokens;
  if (complete == 0) return x;
  const at::Tensor columns = x.slice_symint(2, 0, complete).transpose(2, 3).contiguous();
  const at::Tensor rounded =
      by_rows(columns.view({-1, tokens}), how).view_symint(columns.sym_sizes()).transpose(2, 3);
  return at::cat({rounded, x.slice_symint(2, complete)}, 2);
}

}  // namespace

at::Tensor fake_quantize_cache(const at::Tensor& x, const Optional& scale,
                               std::string_view granularity, int64_t group_size, int64_t bits,
                               std::string_view grid, int64_t first, std::string_view scale_code) {
  const RowQuantizer how{bits, grid, parse_scale_code("fake_quantize_cache", scale_code)};
  check_cache(x, scale, granularity, group_size, first, how.code);
  if (first > 0) {
    // A slice ends where the tokens do.
    return at::cat(
        {x.slice(2, 0, first), fake_quantize_cache(x.slice(2, first), scale, granularity,
                                                   group_size, bits, grid, 0, scale_code)},
        2);
  }
  if (x.sym_numel() == 0) return x;
  if (scale && granularity != "group") return by_given_scale(x, *scale, how);
  if (granularity == "channel") return by_channel(x, group_size, how);
  const c10::SymInt width = granularity == "group" ? c10::SymInt(group_size) : x.sym_size(3);
  const at::Tensor rows = x.reshape_symint({-1, width});
  return (scale ? by_rows_under(rows, *scale, how) : by_rows(rows, how)).view_symint(x.sym_sizes());
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): the schema passes symbolic sizes by value.
at::Tensor quantized_pairs(const at::Tensor& like, c10::SymInt queries, c10::SymInt keys,
                           int64_t group_size, int64_t recent, int64_t first) {
  TORCH_CHECK_VALUE(group_size > 0, "[quantized_pairs] group_size must be positive, but is ",
                    group_size, ".");
  const auto options = like.options().dtype(at::kLong);
  const at::Tensor query = at::arange(keys - queries, keys, options).unsqueeze(1);
  const at::Tensor group = at::floor_divide(at::arange(keys, options) - first, group_size) + 1;
  const at::Tensor end = (group * group_size + (first - 1)).unsqueeze(0);
  return end <= query - recent;
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize_cache(Tensor x, Tensor? scale, str granularity, int group_size, int bits, "
      "str grid, int first, str scale_code=\"float32\") -> Tensor");
  m.def(
      "quantized_pairs(Tensor like, SymInt queries, SymInt keys, int group_size, int recent, "
      "int first) -> Tensor");
}

// Made of operators that have their own gradients.
TORCH_LIBRARY_IMPL(qat, CompositeImplicitAutograd, m) {
  m.impl("fake_quantize_cache", &fake_quantize_cache);
  m.impl("quantized_pairs", &quantized_pairs);
}

}  // namespace qat
