#include "qat/ops/fake_quantize.h"

#include <torch/library.h>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/round_tile.h"
#include "qat/ops/float8.h"
#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

at::Tensor fake_quantize_cpu(const at::Tensor& x, const at::Tensor& scale,
                             const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                             int64_t quant_min, int64_t quant_max,
                             std::optional<at::ScalarType> dtype) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max, dtype);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range))
    return float8_fake_quantize(x, scale, block, range, dtype.value_or(x.scalar_type()));
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y = kept_empty_like(input, dtype.value_or(x.scalar_type()));
  const RoundTile round{to_range(quant_min, quant_max), !zeros, store_for(y)};
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    const auto* in = input.const_data_ptr<decltype(in_type)>();
    auto* out = y.mutable_data_ptr<decltype(out_type)>();
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    for_each_tile(layout_of(x, block), [&](const Tile& tile) QAT_BODY {
      TileParams params;
      load_params(tile, scale_at, zero_at, params);
      round(tile, params, /*finite=*/false, in, out);
    });
  });
  return y;
}

// `out` may be `grad` itself.
void straight_through_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                          const std::optional<at::Tensor>& zero_point, at::IntArrayRef block,
                          QuantRange range, const at::Tensor& out) {
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_backward", [&] {
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const Store store = to == g ? Store::staged : store_for(out);
    const float* scale_at = scales.const_data_ptr<float>();
    const int8_t* zero_at = data_or_null<int8_t>(zeros);
    for_each_tile(layout_of(x, block), [&](const Tile& tile) QAT_BODY {
      TileParams params;
      load_params(tile, scale_at, zero_at, params);
      write_tile(tile, store, to,
                 [&](int k, int64_t offset, auto length, scalar_t* piece) QAT_BODY {
                   const float inverse = params.inverse[k], z = params.zero_point[k];
                   const int64_t at = tile.at(k) + offset;
                   select(g + at, in + at, piece, length, [=](float grad, float value) QAT_BODY {
                     return affine::straight_through(grad, value, inverse, z, range);
                   });
                 });
    });
  });
}

at::Tensor fake_quantize_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                      const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block, int64_t quant_min, int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient("fake_quantize", grad, x);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range)) {
    const at::Tensor passed = grad.clone(at::MemoryFormat::Contiguous);
    float8_straight_through_inplace(passed, x, scale, block, range);
    return passed;
  }
  const at::Tensor grad_x = kept_empty_like(x);
  straight_through_cpu(grad.contiguous(), x, scale, zero_point, block,
                       to_range(quant_min, quant_max), grad_x);
  return grad_x;
}

void fake_quantize_backward_inplace_cpu(at::Tensor& grad, const at::Tensor& x,
                                        const at::Tensor& scale,
                                        const std::optional<at::Tensor>& zero_point,
                                        at::IntArrayRef block, int64_t quant_min,
                                        int64_t quant_max) {
  check_fake_quantize(x, scale, zero_point, block, quant_min, quant_max);
  check_gradient_inplace("fake_quantize", grad, x);
  if (const QuantRange range = to_range(quant_min, quant_max); is_float8(range))
    return float8_straight_through_inplace(grad, x, scale, block, range);
  straight_through_cpu(grad, x, scale, zero_point, block, to_range(quant_min, quant_max), grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) {
  m.impl("fake_quantize", &fake_quantize_cpu);
  m.impl("_fake_quantize_backward", &fake_quantize_backward_cpu);
  m.impl("_fake_quantize_backward_", &fake_quantize_backward_inplace_cpu);
}

}  // namespace qat
