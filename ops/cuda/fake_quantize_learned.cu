#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "qat/ops/checks.h"
#include "qat/ops/cuda/round.cuh"
#include "qat/ops/fake_quantize_learned.h"

namespace qat {
namespace {

struct Sums {
  float* scale;
  float* zero_point;  // null on a symmetric grid
};

// What one element gives: (4), (5) and (6).
struct Terms {
  float x;
  float scale;
  float zero_point;
};
__device__ __forceinline__ Terms terms_of(float grad, float x, QParams params, float inverse,
                                          QuantRange range) {
  const float z = params.zero_point;
  return {affine::straight_through(grad, x, inverse, z, range),
          affine::scale_gradient(grad, x, inverse, z, range),
          affine::zero_point_gradient(grad, x, params.scale, inverse, z, range)};
}

// Groups of at least 32 within a warp. `out` may be `g` itself.
template <typename scalar_t>
void launch_groups(const VectorLayout& vectors, QuantRange range, const scalar_t* g,
                   const scalar_t* in, const LearnedParams& params, scalar_t* out, Sums sums) {
  constexpr int kSize = kPerVector<scalar_t>;
  using Packed = Vector<scalar_t, kSize>;
  const int lanes = static_cast<int>(vectors.per_block);
  launch_warps_of_vectors(vectors, [=] __device__(int64_t vector, int64_t block, bool active) {
    float scale_terms[kSize] = {}, zero_terms[kSize] = {};
    if (active) {
      const QParams found = params(block);
      const float inverse = 1.0f / found.scale;
      Packed grad = reinterpret_cast<const Packed*>(g)[vector];
      const Packed x = reinterpret_cast<const Packed*>(in)[vector];
      for (int j = 0; j < kSize; ++j) {
        const Terms terms = terms_of(static_cast<float>(grad.at[j]), static_cast<float>(x.at[j]),
                                     found, inverse, range);
        grad.at[j] = static_cast<scalar_t>(terms.x);
        scale_terms[j] = terms.scale;
        zero_terms[j] = terms.zero_point;
      }
      reinterpret_cast<Packed*>(out)[vector] = grad;
    }
    const float scale_sum = lane_sum(scale_terms, lanes);
    const float zero_sum = sums.zero_point ? lane_sum(zero_terms, lanes) : 0.0f;
    if (!active || vector % lanes != 0) return;
    sums.scale[block] = scale_sum;
    if (sums.zero_point) sums.zero_point[block] = zero_sum;
  });
}

// Any layout: one pass over x that leaves the sums of each segment.
template <typename scalar_t>
void launch_segments_backward(const BlockLayout& layout, QuantRange range, const scalar_t* g,
                              const scalar_t* in, const LearnedParams& params, scalar_t* out,
                              Sums sums) {
  launch_segments(layout, [=] __device__(const WarpSegment& segment) {
    const QParams found = params(segment.block);
    const float inverse = 1.0f / found.scale;
    float scales = 0.0f, zeros = 0.0f;
    for (int64_t i = segment.begin + segment.lane; i < segment.end; i += kWarp) {
      const Terms terms =
          terms_of(static_cast<float>(g[i]), static_cast<float>(in[i]), found, inverse, range);
      out[i] = static_cast<scalar_t>(terms.x);
      scales += terms.scale;
      zeros += terms.zero_point;
    }
    scales = warp_sum(scales);
    zeros = warp_sum(zeros);
    if (segment.lane != 0) return;
    sums.scale[segment.index] = scales;
    if (sums.zero_point) sums.zero_point[segment.index] = zeros;
  });
}

// One thread adds the rows of one block, top to bottom.
__global__ void sum_rows_kernel(BlockLayout layout, float factor, const float* partial,
                                float* sums) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       index < layout.grid_rows * layout.grid_cols; index += stride) {
    const int64_t first = index / layout.grid_cols * layout.block_rows;
    const int64_t col = index % layout.grid_cols;
    const int64_t last =
        first + layout.block_rows < layout.rows ? first + layout.block_rows : layout.rows;
    float sum = 0.0f;
    for (int64_t row = first; row < last; ++row) sum += partial[row * layout.grid_cols + col];
    sums[index] = sum * factor;
  }
}

at::Tensor sum_rows(const at::Tensor& partial, const BlockLayout& layout, double factor,
                    const at::Tensor& like) {
  at::Tensor sums = at::empty_like(like, at::MemoryFormat::Contiguous);
  if (sums.numel() == 0) return sums;
  QAT_LAUNCH(sum_rows_kernel, blocks_for(sums.numel(), kThreads), layout,
             static_cast<float>(factor), partial.const_data_ptr<float>(),
             sums.mutable_data_ptr<float>());
  return sums;
}

// Writes the gradient of x to `out`, which may be `grad` itself, and returns those of scale and
// zero point.
std::tuple<at::Tensor, at::Tensor> learned_backward(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& scale,
                                                    const std::optional<at::Tensor>& zero_point,
                                                    at::IntArrayRef block, QuantRange range,
                                                    at::ScalarType scale_dtype,
                                                    double gradient_scale, const at::Tensor& out) {
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const BlockLayout layout = layout_of(x, block);
  const at::Tensor partial_scale = at::empty({layout.rows, layout.grid_cols}, scales.options());
  const at::Tensor partial_zero = zeros ? at::empty_like(partial_scale) : at::Tensor();
  const Sums sums{partial_scale.mutable_data_ptr<float>(),
                  zeros ? partial_zero.mutable_data_ptr<float>() : nullptr};
  const LearnedParams params{scales.const_data_ptr<float>(), data_or_null<float>(zeros), range,
                             scale_dtype};
  QAT_DISPATCH_FLOAT(x.scalar_type(), "fake_quantize_learned_backward", [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* in = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const auto vectors = vector_layout<scalar_t>(layout, g, in, to);
    if (vectors.in_warp() && layout.block_cols >= kWarp) {
      launch_groups(vectors, range, g, in, params, to, sums);
    } else {
      launch_segments_backward(layout, range, g, in, params, to, sums);
    }
  });
  return {sum_rows(partial_scale, layout, gradient_scale, scales),
          zeros ? sum_rows(partial_zero, layout, gradient_scale, scales)
                : at::empty({0}, scales.options())};
}

at::Tensor fake_quantize_learned_cuda(const at::Tensor& x, const at::Tensor& scale,
                                      const std::optional<at::Tensor>& zero_point,
                                      at::IntArrayRef block, int64_t quant_min, int64_t quant_max,
                                      at::ScalarType scale_dtype, double /*gradient_scale*/,
                                      std::optional<at::ScalarType> dtype) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype,
                              dtype);
  const c10::cuda::CUDAGuard on_device(x.device());
  const at::Tensor input = x.contiguous(), scales = scale.contiguous();
  const auto zeros = contiguous(zero_point);
  const at::Tensor y =
      at::empty_like(input, input.options().dtype(dtype.value_or(x.scalar_type())));
  const QuantRange range = to_range(quant_min, quant_max);
  dispatch_in_out(x.scalar_type(), y.scalar_type(), [&](auto in_type, auto out_type) {
    launch_round(layout_of(x, block), range, input.const_data_ptr<decltype(in_type)>(),
                 y.mutable_data_ptr<decltype(out_type)>(),
                 LearnedParams{scales.const_data_ptr<float>(), data_or_null<float>(zeros), range,
                               scale_dtype});
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fake_quantize_learned_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient("fake_quantize_learned", grad, x);
  const at::Tensor grad_x = at::empty_like(x, at::MemoryFormat::Contiguous);
  const auto [grad_scale, grad_zero] =
      learned_backward(grad.contiguous(), x, scale, zero_point, block,
                       to_range(quant_min, quant_max), scale_dtype, gradient_scale, grad_x);
  return {grad_x, grad_scale, grad_zero};
}

std::tuple<at::Tensor, at::Tensor> fake_quantize_learned_backward_inplace_cuda(
    at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
    const std::optional<at::Tensor>& zero_point, at::IntArrayRef block, int64_t quant_min,
    int64_t quant_max, at::ScalarType scale_dtype, double gradient_scale) {
  check_fake_quantize_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype);
  check_gradient_inplace("fake_quantize_learned", grad, x);
  return learned_backward(grad, x, scale, zero_point, block, to_range(quant_min, quant_max),
                          scale_dtype, gradient_scale, grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CUDA, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_cuda);
  m.impl("_fake_quantize_learned_backward", &fake_quantize_learned_backward_cuda);
  m.impl("_fake_quantize_learned_backward_", &fake_quantize_learned_backward_inplace_cuda);
}

}  // namespace qat
