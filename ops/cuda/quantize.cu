#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/cuda/rounding.cuh"
#include "qat/ops/quantize.h"

namespace qat {
namespace {

// (1) and (2), for launch_map().
template <typename Round>
struct Code {
  Round round;
  __device__ __forceinline__ float operator()(const BlockParams& p, float x) const {
    return round.code(x, p);
  }
};

at::Tensor quantize_cuda(const at::Tensor& x, std::string_view text, const at::Tensor& scale,
                         const OptionalTensor& zero_point) {
  const Quantizer quantizer = check_quantize(x, text, scale, zero_point);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous();
  const StoredTensors stored = stored_parameters(x, quantizer, scale, zero_point, std::nullopt);
  const at::Tensor codes = at::empty_like(input, input.options().dtype(code_dtype(quantizer.grid)));
  with_codes(quantizer, stored.zero_point.has_value(), [&](const auto& rounding, auto code) {
    QAT_DISPATCH_FLOAT(x.scalar_type(), "quantize", [&] {
      launch_map(layout_of(x, quantizer.block), StoredParams(stored),
                 Code<std::decay_t<decltype(rounding)>>{rounding},
                 codes.mutable_data_ptr<decltype(code)>(), input.const_data_ptr<scalar_t>());
    });
  });
  return codes;
}

// (3), with an offset or without.
struct Dequantized {
  const float* scale;
  const int8_t* zero_point;
  const float* offset;

  struct Params {
    float scale;
    float zero_point;
    float offset;
  };
  __device__ __forceinline__ Params operator()(int64_t block) const {
    return {scale[block], zero_point ? static_cast<float>(zero_point[block]) : 0.0f,
            offset ? offset[block] : 0.0f};
  }
};
struct Dequantize {
  bool shifted;
  __device__ __forceinline__ float operator()(const Dequantized::Params& p, float code) const {
    const float x = affine::dequantize(code, p.scale, p.zero_point);
    return shifted ? x + p.offset : x;
  }
};

template <typename Body>
void dispatch_codes(at::ScalarType type, const Body& body) {
  if (type == at::kChar) return body(int8_t());
  type == at::kFloat8_e5m2 ? body(c10::Float8_e5m2()) : body(c10::Float8_e4m3fn());
}

at::Tensor dequantize_cuda(const at::Tensor& codes, const at::Tensor& scale,
                           const OptionalTensor& zero_point, at::IntArrayRef block,
                           at::ScalarType dtype) {
  check_dequantize(codes, scale, zero_point, block, dtype);
  const c10::cuda::CUDAGuard on_device(codes.device());
  const at::Tensor input = codes.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const bool offset = zeros && zeros->scalar_type() == at::kFloat;
  const at::Tensor y = at::empty_like(input, input.options().dtype(dtype));
  const Dequantized params{scales.const_data_ptr<float>(),
                           zeros && !offset ? zeros->const_data_ptr<int8_t>() : nullptr,
                           offset ? zeros->const_data_ptr<float>() : nullptr};
  dispatch_codes(codes.scalar_type(), [&](auto code) {
    QAT_DISPATCH_FLOAT(dtype, "dequantize", [&] {
      launch_map(layout_of(codes, block), params, Dequantize{offset},
                 y.mutable_data_ptr<scalar_t>(), input.const_data_ptr<decltype(code)>());
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("quantize", &quantize_cuda);
  m.impl("dequantize", &dequantize_cuda);
}

}  // namespace qat
