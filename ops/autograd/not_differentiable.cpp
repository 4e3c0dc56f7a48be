// Operators whose results carry no gradient: codes, and parameters that count as constants.

#include <torch/library.h>

TORCH_LIBRARY_IMPL(qat, Autograd, m) {
  m.impl("choose_qparams", torch::CppFunction::makeFallthrough());
  m.impl("choose_outer_scales", torch::CppFunction::makeFallthrough());
  m.impl("outer_scales", torch::CppFunction::makeFallthrough());
  m.impl("round_qparams", torch::CppFunction::makeFallthrough());
  m.impl("encode", torch::CppFunction::makeFallthrough());
  m.impl("decode", torch::CppFunction::makeFallthrough());
  m.impl("kl_divergence", torch::CppFunction::makeFallthrough());
  m.impl("quantize_with_feedback", torch::CppFunction::makeFallthrough());
  m.impl("quantize", torch::CppFunction::makeFallthrough());
  m.impl("pack", torch::CppFunction::makeFallthrough());
  m.impl("unpack", torch::CppFunction::makeFallthrough());
  m.impl("pack_panels", torch::CppFunction::makeFallthrough());
  m.impl("unpack_panels", torch::CppFunction::makeFallthrough());
  m.impl("pack_panel_values", torch::CppFunction::makeFallthrough());
  m.impl("unpack_panel_values", torch::CppFunction::makeFallthrough());
}
