#include "qat/ops/fake_quantize.h"

#include <c10/core/DeviceGuard.h>

#include "qat/ops/call.h"
#include "qat/ops/kept_memory.h"
#include "qat/ops/kernels.h"

namespace qat {

FakeQuantized fake_quantize(const at::Tensor& x, std::string_view quantizer,
                            const OptionalTensor& scale, const OptionalTensor& zero_point,
                            const OptionalTensor& outer_scale,
                            std::optional<at::ScalarType> dtype) {
  return call<"qat::fake_quantize", decltype(fake_quantize)>(x, quantizer, scale, zero_point,
                                                             outer_scale, dtype);
}

namespace {

Quantizer checked(const at::Tensor& x, std::string_view text, const Quantizer::Parameters& given,
                  std::optional<at::ScalarType> dtype) {
  check_input("fake_quantize", x);
  check_result_dtype("fake_quantize", x, dtype);
  const Quantizer quantizer = Quantizer::parse(text);
  TORCH_CHECK_VALUE(quantizer.active(), "[fake_quantize] quantizer must not be empty.");
  check_parameters("fake_quantize", quantizer, x, given);
  return quantizer;
}

}  // namespace

void implement_fake_quantize(torch::Library& m, const FakeQuantizeKernels& kernels) {
  m.impl("fake_quantize",
         [kernels](const at::Tensor& x, std::string_view text, const OptionalTensor& scale,
                   const OptionalTensor& zero_point, const OptionalTensor& outer_scale,
                   std::optional<at::ScalarType> dtype) -> FakeQuantized {
           const Quantizer::Parameters given{scale, zero_point, outer_scale};
           const Blocks blocks(x, checked(x, text, given, dtype));
           const c10::DeviceGuard on_device(x.device());
           const at::Tensor y = kept_empty_like(blocks.x, dtype.value_or(x.scalar_type()));
           const bool finds = blocks.quantizer.finds();
           const bool by_range = blocks.quantizer.mode == Quantizer::Mode::minmax;
           if (x.is_meta() ? finds : by_range && kernels.finds(blocks)) {
             const FoundTensors found = empty_parameters(x, blocks.quantizer);
             if (!x.is_meta()) kernels.find_and_round(blocks, outer_scale, found, y);
             return {y, found.scale, found.zero_point};
           }
           StoredTensors stored;
           if (!x.is_meta()) {
             stored = stored_parameters(x, blocks.quantizer, given, kernels.learned);
             kernels.round(blocks, stored, y);
           }
           if (finds) return {y, stored.scale, stored.found_zero_point};
           const auto [no_scale, no_zero_point] = no_parameters(x, blocks.quantizer);
           return {y, no_scale, no_zero_point};
         });
}

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def(
      "fake_quantize(Tensor x, str quantizer, Tensor? scale=None, Tensor? zero_point=None, "
      "Tensor? outer_scale=None, *, ScalarType? dtype=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(qat, Meta, m) { implement_fake_quantize(m, {}); }

}  // namespace qat
