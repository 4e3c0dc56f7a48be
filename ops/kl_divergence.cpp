#include "qat/ops/kl_divergence.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include "qat/ops/arguments.h"
#include "qat/ops/call.h"
#include "qat/ops/checks.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

void check_kl_divergence(const at::Tensor& student, const at::Tensor& teacher, double temperature,
                         const OptionalTensor& counted, const OptionalTensor& share) {
  const char* op = "kl_divergence";
  check_float(op, "student", student.scalar_type());
  check_float(op, "teacher", teacher.scalar_type());
  TORCH_CHECK_VALUE(student.dim() >= 1 && student.sym_sizes() == teacher.sym_sizes(),
                    "[kl_divergence] student and teacher must have one shape [..., choices], but "
                    "have ",
                    student.sym_sizes(), " and ", teacher.sym_sizes(), ".");
  check_temperature(temperature);
  const auto beside_student = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.device() == student.device(), "[kl_divergence] ", name, " must be on ",
                      student.device(), " like student, but is on ", tensor.device(), ".");
  };
  beside_student("teacher", teacher);
  if (counted) beside_student("counted", *counted);
  if (share) beside_student("share", *share);
  TORCH_CHECK_VALUE(
      !counted || (counted->scalar_type() == at::kBool &&
                   counted->sym_sizes() == student.sym_sizes().slice(0, student.dim() - 1)),
      "[kl_divergence] counted must be bool ", student.sym_sizes().slice(0, student.dim() - 1),
      ", one entry per token.");
  TORCH_CHECK_VALUE(!share || (share->scalar_type() == at::kFloat && share->dim() == 0),
                    "[kl_divergence] share must be float32 and have no dimensions.");
}

}  // namespace

void check_temperature(double temperature) {
  TORCH_CHECK_VALUE(temperature >= 1e-18 && temperature <= 1e18,
                    "[kl_divergence] temperature must be from 1e-18 to 1e18, so that float32 has "
                    "its square and its reciprocal, but is ",
                    temperature, ".");
}

std::tuple<at::Tensor, at::Tensor> kl_divergence(const at::Tensor& student,
                                                 const at::Tensor& teacher, double temperature,
                                                 const OptionalTensor& counted,
                                                 const OptionalTensor& share) {
  return call<"qat::kl_divergence", decltype(kl_divergence)>(student, teacher, temperature, counted,
                                                             share);
}

at::Tensor forward_kl(const at::Tensor& student, const at::Tensor& teacher, double temperature,
                      const OptionalTensor& counted) {
  return call<"qat::forward_kl", decltype(forward_kl)>(student, teacher, temperature, counted);
}

void implement_kl_divergence(torch::Library& m, void (*find)(const Divergence&)) {
  m.impl("kl_divergence", [find](const at::Tensor& student, const at::Tensor& teacher,
                                 double temperature, const OptionalTensor& counted,
                                 const OptionalTensor& share) {
    check_kl_divergence(student, teacher, temperature, counted, share);
    const c10::DeviceGuard on_device(student.device());
    const auto tokens = student.sym_sizes().slice(0, student.dim() - 1);
    const at::Tensor kl = at::empty_symint(tokens, student.options().dtype(at::kFloat));
    const at::Tensor from = student.contiguous();
    const at::Tensor gradient = share ? at::empty_like(from) : at::empty({0}, student.options());
    if (!student.is_meta() && kl.numel() != 0)
      find({from, teacher.contiguous(), 1.0f / static_cast<float>(temperature), contiguous(counted),
            share, kl, gradient});
    return std::tuple{kl, gradient};
  });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "kl_divergence(Tensor student, Tensor teacher, float temperature=1.0, Tensor? counted=None, "
      "Tensor? share=None) -> (Tensor, Tensor)");
  m.def(
      "forward_kl(Tensor student, Tensor teacher, float temperature=1.0, Tensor? counted=None) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { implement_kl_divergence(m, nullptr); }

}  // namespace qat
