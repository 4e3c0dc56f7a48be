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
                 int64_t group_size, int64_t first) {
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
  const bool given = granularity == "tensor" || granularity == "head";
  const c10::SymInt wanted = granularity == "head" ? x.sym_size(1) : c10::SymInt(1);
  TORCH_CHECK_VALUE(given == scale.has_value() && (!given || scale->sym_numel() == wanted),
                    "[fake_quantize_cache] scale must be given for granularity tensor and head, "
                    "with 1 entry or one a head, and for no other.");
}

Quantizer cache_quantizer(Quantizer::Mode mode, int64_t bits, std::string_view grid) {
  Quantizer quantizer;
  quantizer.mode = mode;
  quantizer.grid = parse_grid("fake_quantize_cache", grid);
  quantizer.bits = is_float(quantizer.grid) ? float_bits(quantizer.grid) : static_cast<int>(bits);
  quantizer.block = {1, -1};
  return quantizer;
}

// Each row a block, with a scale of its own found from it.
at::Tensor by_rows(const at::Tensor& rows, int64_t bits, std::string_view grid) {
  const auto rounded = [&](const at::Tensor& values) {
    return cache_quantizer(Quantizer::Mode::minmax, bits, grid)(values, {}, values.scalar_type())
        .values;
  };
  if (grid != "asymmetric" || rows.sym_numel() == 0) return rounded(rows);
  // In float32, so that the offset comes off exactly enough: x is rounded once, at the end. What is
  // not finite is no offset: it comes out as NaN, and its block is rounded as if it were not there.
  const at::Tensor wide = rows.to(at::kFloat);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const at::Tensor values = wide.detach();
  const at::Tensor low = values.masked_fill((values - values).ne(0), kNever).amin(-1, true);
  return (rounded(wide - low) + low).to(rows.scalar_type());
}

at::Tensor by_given_scale(const at::Tensor& x, const at::Tensor& scale, int64_t bits,
                          std::string_view grid) {
  Quantizer quantizer = cache_quantizer(Quantizer::Mode::fixed, bits, grid);
  // A row a head, or one in all.
  const bool one = scale.sym_numel() == 1;
  const at::Tensor rows = one ? x : x.transpose(0, 1).flatten(1);
  const at::Tensor scales = one ? scale.view({1, 1}) : scale.view({-1, 1});
  if (one) quantizer.block = {-1, -1};
  const at::Tensor y = quantizer(rows, {scales, {}, {}}, x.scalar_type()).values;
  if (one) return y;
  return y.view_symint(x.transpose(0, 1).sym_sizes()).transpose(0, 1);
}

at::Tensor by_channel(const at::Tensor& x, int64_t tokens, int64_t bits, std::string_view grid) {
  const c10::SymInt complete = x.sym_size(2) / tokens * tokens;
  if (complete == 0) return x;
  const at::Tensor columns = x.slice_symint(2, 0, complete).transpose(2, 3).contiguous();
  const at::Tensor rounded = by_rows(columns.view({-1, tokens}), bits, grid)
                                 .view_symint(columns.sym_sizes())
                                 .transpose(2, 3);
  return at::cat({rounded, x.slice_symint(2, complete)}, 2);
}

}  // namespace

at::Tensor fake_quantize_cache(const at::Tensor& x, const Optional& scale,
                               std::string_view granularity, int64_t group_size, int64_t bits,
                               std::string_view grid, int64_t first) {
  check_cache(x, scale, granularity, group_size, first);
  if (first > 0) {
    // A slice ends where the tokens do.
    return at::cat({x.slice(2, 0, first), fake_quantize_cache(x.slice(2, first), scale, granularity,
                                                              group_size, bits, grid, 0)},
                   2);
  }
  if (x.sym_numel() == 0) return x;
  if (scale) return by_given_scale(x, *scale, bits, grid);
  if (granularity == "channel") return by_channel(x, group_size, bits, grid);
  const c10::SymInt width = granularity == "group" ? c10::SymInt(group_size) : x.sym_size(3);
  return by_rows(x.reshape_symint({-1, width}), bits, grid).view_symint(x.sym_sizes());
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
      "str grid, int first) -> Tensor");
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
