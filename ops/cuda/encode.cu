#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/cuda/segments.cuh"
#include "qat/ops/encode.h"

namespace qat {
namespace {

struct Encoded {
  uint8_t* codes;
  float* scale;
  int8_t* zero_point;
};

__device__ __forceinline__ uint8_t code_of(float x, float inverse, float z, QuantRange range) {
  return static_cast<uint8_t>(static_cast<int>(affine::quantize(x, inverse, z, range)) -
                              static_cast<int>(range.min));
}

// A warp finds or reads the parameters of its segment and writes its codes.
template <typename scalar_t>
void launch_encode(const BlockLayout& layout, const CodeLayout& code, Grid grid, int bits,
                   at::ScalarType scale_dtype, const scalar_t* in, const float* given_scale,
                   const int8_t* given_zero, Encoded to) {
  const QuantRange range = range_of(grid, bits);
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    Range seen;
    float broken = 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp) {
      const float value = static_cast<float>(in[i]);
      seen.see(value);
      if (!is_finite(value)) broken = 1.0f;
    }
    seen = seen.over_warp();
    broken = warp_max(broken);
    QParams params = seen.qparams(grid, bits, scale_dtype);
    if (given_scale) {
      params.scale = given_scale[segment.block];
      params.zero_point = given_zero ? static_cast<float>(given_zero[segment.block]) : 0.0f;
    }
    // Parameters that were given are there already: the rows of a block only add what is not
    // finite.
    if (segment.lane == 0 && !given_scale) {
      to.scale[segment.block] = params.scale;
      to.zero_point[segment.block] = static_cast<int8_t>(params.zero_point);
    }
    if (segment.lane == 0 && broken > 0.0f) to.scale[segment.block] = NAN;
    const float inverse = 1.0f / params.scale, z = params.zero_point;
    const int64_t bytes = code.bytes_of(segment.end - segment.begin);
    const int64_t row = segment.index / layout.grid_cols, col = segment.index % layout.grid_cols;
    uint8_t* codes = to.codes + row * code.per_row + col * code.per_block;
    for (int64_t j = segment.lane; j < bytes; j += kWarp) {
      const int64_t i = segment.begin + (code.shared ? 2 * j : j);
      uint8_t byte = code_of(static_cast<float>(in[i]), inverse, z, range);
      if (code.shared && i + 1 < segment.end)
        byte |=
            static_cast<uint8_t>(code_of(static_cast<float>(in[i + 1]), inverse, z, range) << 4);
      codes[j] = byte;
    }
  });
}

template <typename scalar_t>
void launch_decode(const BlockLayout& layout, const CodeLayout& code, QuantRange range,
                   const uint8_t* in, const float* scale, const int8_t* zero_point, scalar_t* out) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const float s = scale[segment.block], z = static_cast<float>(zero_point[segment.block]);
    const int64_t bytes = code.bytes_of(segment.end - segment.begin);
    const int64_t row = segment.index / layout.grid_cols, col = segment.index % layout.grid_cols;
    const uint8_t* codes = in + row * code.per_row + col * code.per_block;
    const auto value = [&](int level) {
      return static_cast<scalar_t>(affine::dequantize(static_cast<float>(level) + range.min, s, z));
    };
    for (int64_t j = segment.lane; j < bytes; j += kWarp) {
      const int byte = codes[j];
      const int64_t i = segment.begin + (code.shared ? 2 * j : j);
      out[i] = value(code.shared ? byte & 15 : byte);
      if (code.shared && i + 1 < segment.end) out[i + 1] = value(byte >> 4);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> encode_cuda(
    const at::Tensor& x, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t bits,
    std::string_view grid_text, at::ScalarType scale_dtype) {
  check_encode(x, scale, zero_point, block, bits, scale_dtype);
  check_integer_grid("encode", grid_text);
  const Grid grid = parse_grid("encode", grid_text);
  const BlockLayout layout = layout_of(x, block);
  const c10::cuda::CUDAGuard on_device(x.device());
  if (!scale && layout.block_rows > 1) {
    const auto [found, zero] = choose_qparams(x, block, bits, grid_text, "minmax", scale_dtype);
    return encode_cuda(x, found, zero, block, bits, grid_text, scale_dtype);
  }
  const at::Tensor input = x.contiguous();
  const auto scales = contiguous(scale), zeros = contiguous(zero_point);
  const CodeLayout code = code_layout(layout, bits);
  const auto options = x.options();
  const at::Tensor codes = at::empty({layout.rows, code.per_row}, options.dtype(at::kByte));
  const at::Tensor kept_scale =
      at::empty({layout.grid_rows, layout.grid_cols}, options.dtype(at::kFloat));
  const at::Tensor kept_zero =
      at::empty({layout.grid_rows, layout.grid_cols}, options.dtype(at::kChar));
  if (scales) {
    kept_scale.copy_(*scales);
    zeros ? kept_zero.copy_(*zeros) : kept_zero.zero_();
  }
  QAT_DISPATCH_FLOAT(x.scalar_type(), "encode", [&] {
    launch_encode(layout, code, grid, static_cast<int>(bits), scale_dtype,
                  input.const_data_ptr<scalar_t>(), data_or_null<float>(scales),
                  data_or_null<int8_t>(zeros),
                  Encoded{codes.mutable_data_ptr<uint8_t>(), kept_scale.mutable_data_ptr<float>(),
                          kept_zero.mutable_data_ptr<int8_t>()});
  });
  return {codes, kept_scale, kept_zero};
}

at::Tensor decode_cuda(const at::Tensor& codes, const at::Tensor& scale,
                       const at::Tensor& zero_point, at::IntArrayRef block, int64_t bits,
                       std::string_view grid_text, c10::SymInt cols, at::ScalarType dtype) {
  const BlockLayout layout =
      check_decode(codes, scale, zero_point, block, bits, cols.expect_int(), dtype);
  const Grid grid = parse_grid("decode", grid_text);
  const c10::cuda::CUDAGuard on_device(codes.device());
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous(),
                   zeros = zero_point.contiguous();
  const at::Tensor y = at::empty({layout.rows, layout.cols}, codes.options().dtype(dtype));
  QAT_DISPATCH_FLOAT(dtype, "decode", [&] {
    launch_decode(layout, code_layout(layout, bits), range_of(grid, static_cast<int>(bits)),
                  input.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(),
                  zeros.const_data_ptr<int8_t>(), y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("encode", &encode_cuda);
  m.impl("decode", &decode_cuda);
}

}  // namespace qat
