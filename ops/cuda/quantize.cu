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

void quantize_blocks(const Blocks& blocks, const StoredTensors& stored, const at::Tensor& codes) {
  with_codes(blocks.quantizer, stored.zero_point.has_value(), [&](const auto& rounding, auto code) {
    QAT_DISPATCH_FLOAT(blocks.x.scalar_type(), "quantize", [&] {
      launch_map(blocks.layout, StoredParams(stored),
                 Code<std::decay_t<decltype(rounding)>>{rounding},
                 codes.mutable_data_ptr<decltype(code)>(), blocks.x.const_data_ptr<scalar_t>());
    });
  });
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

void dequantize_blocks(const at::Tensor& codes, const BlockLayout& layout, const at::Tensor& scale,
                       const OptionalTensor& zero_point, const at::Tensor& y) {
  const bool offset = is_offset(zero_point);
  const Dequantized params{scale.const_data_ptr<float>(),
                           zero_point && !offset ? zero_point->const_data_ptr<int8_t>() : nullptr,
                           offset ? zero_point->const_data_ptr<float>() : nullptr};
  dispatch_codes(codes.scalar_type(), [&](auto code) {
    QAT_DISPATCH_FLOAT(y.scalar_type(), "dequantize", [&] {
      launch_map(layout, params, Dequantize{offset}, y.mutable_data_ptr<scalar_t>(),
                 codes.const_data_ptr<decltype(code)>());
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) { implement_quantize(m, {&quantize_blocks, &dequantize_blocks}); }

}  // namespace qat
