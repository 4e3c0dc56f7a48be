#include "qat/ops/quantize.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/tile_params.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

at::Tensor quantize_cpu(const at::Tensor& x, const at::Tensor& scale,
                        const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                        int64_t quant_min, int64_t quant_max) {
  check_quantize(x, scale, zero_point, block, quant_min, quant_max);
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor codes = at::empty_like(input, input.options().dtype(at::kChar));
  const QuantRange range = to_range(quant_min, quant_max);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "quantize", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    int8_t* out = codes.mutable_data_ptr<int8_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    for_each_tile(layout_of(x, block), [&](const Tile& tile) QAT_BODY {
      TileParams params;
      load_params(tile, scale_at, zero_at, params);
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const float inverse = params.inverse[k], z = params.zero_point[k];
        convert(in + tile.at(k), out + tile.at(k), length,
                [=](float value) QAT_BODY { return affine::quantize(value, inverse, z, range); });
      });
    });
  });
  return codes;
}

at::Tensor dequantize_cpu(const at::Tensor& codes, const at::Tensor& scale,
                          const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                          at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = kept_empty_like(input, dtype);
  QAT_DISPATCH_FLOAT(dtype, "dequantize", [&] {
    const int8_t* in = input.const_data_ptr<int8_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    for_each_tile(layout_of(codes, block), [&](const Tile& tile) QAT_BODY {
      for_each_segment(tile, [&](int k, auto length) QAT_BODY {
        const int64_t b = tile.first_block + k;
        const float s = scale_at[b], z = zero_at ? static_cast<float>(zero_at[b]) : 0.0f;
        convert(in + tile.at(k), out + tile.at(k), length,
                [=](float code) QAT_BODY { return affine::dequantize(code, s, z); });
      });
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("quantize", &quantize_cpu);
  m.impl("dequantize", &dequantize_cpu);
}

}  // namespace qat
