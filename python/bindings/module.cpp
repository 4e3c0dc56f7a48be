// The extension torchqat._C: classes that an operator schema cannot carry. Operators are not bound
// here; they arrive as torch.ops.qat when the library is loaded.

#include "python/bindings/module.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("built_for_torch") = QAT_TORCH_VERSION;
  m.attr("built_with_cuda") = QAT_WITH_CUDA != 0;
  qat::bindings::def_spec(m);
  qat::bindings::def_kv_cache(m);
  qat::bindings::def_recipe(m);
  qat::bindings::def_plan(m);
  qat::bindings::def_artifact(m);
  qat::bindings::def_safetensors(m);
  qat::bindings::def_formats(m);
  qat::bindings::def_weight_cache(m);
  qat::bindings::def_calibration(m);
}
