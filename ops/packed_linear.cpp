#include "qat/ops/packed_linear.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "qat/ops/call.h"

namespace qat {
namespace {

// Of other devices. To dequantize the weight in every call would be slower than to do it once, and
// take its memory all the same.
at::Tensor packed_linear_elsewhere(const at::Tensor& x, const at::Tensor& panels,
                                   const at::Tensor& scale, const std::optional<at::Tensor>& zero,
                                   const std::optional<at::Tensor>& bias, int64_t, int64_t,
                                   int64_t) {
  at::Device device = x.device();
  for (const at::Tensor& one : {panels, scale, zero.value_or(x), bias.value_or(x)})
    if (device.is_cpu()) device = one.device();
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "[packed_linear] everything must be on a CPU, where packed products run, but is on ",
      device, "; there, load the checkpoint into layers of torch, or serve it with an engine.");
}

at::Tensor packed_linear_meta(const at::Tensor& x, const at::Tensor&, const at::Tensor&,
                              const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                              int64_t, int64_t, int64_t out) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = out;
  return at::empty_symint(sizes, x.options());
}

}  // namespace

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& scale,
                         const std::optional<at::Tensor>& zero_point,
                         const std::optional<at::Tensor>& bias, int64_t bits, int64_t group_size,
                         int64_t out) {
  return call<"qat::packed_linear", decltype(packed_linear)>(x, panels, scale, zero_point, bias,
                                                             bits, group_size, out);
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "packed_linear(Tensor x, Tensor panels, Tensor scale, Tensor? zero_point, Tensor? bias, "
      "int bits, int group_size, int out) -> Tensor");
}

TORCH_LIBRARY_IMPL(qat, CompositeExplicitAutograd, m) {
  m.impl("packed_linear", &packed_linear_elsewhere);
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { m.impl("packed_linear", &packed_linear_meta); }

}  // namespace qat
