// Operators whose results carry no gradient: codes, and parameters that count as constants.

#include <torch/library.h>

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  for (const char* name :
       {"choose_qparams", "choose_outer_scales", "outer_scales", "round_qparams", "encode",
        "decode", "kl_divergence", "quantize_with_feedback", "quantize", "pack", "unpack",
        "pack_panels", "unpack_panels", "pack_panel_values", "unpack_panel_values"})
    m.impl(name, torch::CppFunction::makeFallthrough());
}
