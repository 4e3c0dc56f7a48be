#include "qat/ops/quant_linear.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace qat {
namespace {

using Optional = std::optional<at::Tensor>;

// As torch does for linear: the product is computed in autocast's dtype. The weight is not cast
// before it is rounded, since the grid belongs to the master weight.
template <c10::DispatchKey kKey, c10::DeviceType kDevice>
at::Tensor quant_linear_autocast(const at::Tensor& x, const at::Tensor& weight,
                                 const Optional& bias, const Optional& weight_scale,
                                 const Optional& weight_zero_point, const Optional& input_scale,
                                 const Optional& input_zero_point, at::TensorList kept,
                                 std::string_view weight_quantizer,
                                 std::string_view input_quantizer, const Optional& weight_outer,
                                 const Optional& input_outer) {
  const c10::impl::ExcludeDispatchKeyGuard without_autocast(kKey);
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  return quant_linear(at::autocast::cached_cast(dtype, x, kDevice), weight, bias, weight_scale,
                      weight_zero_point, input_scale, input_zero_point, kept, weight_quantizer,
                      input_quantizer, weight_outer, input_outer);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, AutocastCPU, m) {
  m.impl("quant_linear",
         &quant_linear_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(qat, AutocastCUDA, m) {
  m.impl("quant_linear",
         &quant_linear_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}

}  // namespace qat
