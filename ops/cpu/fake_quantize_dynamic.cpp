#include "ops/fake_quantize_dynamic.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/choose_qparams.h"
#include "ops/cpu/segments.h"
#include "ops/fake_quantize.h"

namespace qat {
namespace {

// One pass for blocks of one row: the segment is still in cache when its scale is known.
template <typename scalar_t>
void fake_quantize_rows(const at::Tensor& input, const BlockLayout& layout, int bits, Grid grid,
                        at::ScalarType scale_dtype, const at::Tensor& y, const at::Tensor& scale,
                        const at::Tensor& zero_point) {
  const scalar_t* in = input.const_data_ptr<scalar_t>();
  scalar_t* out = y.mutable_data_ptr<scalar_t>();
  float* scale_at = scale.mutable_data_ptr<float>();
  int8_t* zero_at = zero_point.mutable_data_ptr<int8_t>();
  const QuantRange range = range_of(grid, bits);
  parallel_rows(layout, [&](int64_t begin, int64_t end) QAT_BODY {
    for_each_segment(layout, begin, end, [&](int64_t at, int64_t length, int64_t b) QAT_BODY {
      const QParams found = qparams_of(span_of(in + at, length), grid, bits, scale_dtype);
      const float s = found.scale, inverse = 1.0f / s, z = found.zero_point;
      scale_at[b] = s;
      zero_at[b] = static_cast<int8_t>(z);
      for (int64_t i = at; i < at + length; ++i)
        out[i] = static_cast<scalar_t>(
            affine::fake_quantize(static_cast<float>(in[i]), s, inverse, z, range));
    });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_dynamic_cpu(
    const at::Tensor& x, at::IntArrayRef block, int64_t bits, std::string_view grid_text,
    at::ScalarType scale_dtype) {
  check_fake_quantize_dynamic(x, block, bits, scale_dtype);
  const Grid grid = parse_grid("fake_quantize_dynamic", grid_text);
  const BlockLayout layout = layout_of(x, block);
  if (layout.block_rows > 1) {
    auto [scale, zero_point] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    const QuantRange range = range_of(grid, static_cast<int>(bits));
    return {fake_quantize(x, scale, zero_point, block, static_cast<int64_t>(range.min),
                          static_cast<int64_t>(range.max)),
            scale, zero_point};
  }
  const at::Tensor input = x.contiguous();
  const at::Tensor y = at::empty_like(input);
  const at::Tensor scale =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kFloat));
  const at::Tensor zero_point =
      at::empty({layout.grid_rows, layout.grid_cols}, x.options().dtype(at::kChar));
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_dynamic", [&] {
    fake_quantize_rows<scalar_t>(input, layout, static_cast<int>(bits), grid, scale_dtype, y, scale,
                                 zero_point);
  });
  return {y, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cpu); }

}  // namespace qat
