#include "qat/outer_parameters.h"

#include <string>
#include <utility>

#include "qat/ops/choose_qparams.h"

namespace qat {

OuterParameters outer_parameters(const at::Tensor& weight, const QuantSpec& spec, int bits,
                                 OuterParameters given) {
  if (!spec.scale.has_outer() || (given.scale && (given.offset || !spec.has_offset())))
    return given;
  const std::string text = quantizer_of(spec, bits, Quantizer::Mode::minmax).text();
  const auto [scale, offset] = choose_outer_scales(weight, text);
  if (!given.scale) given.scale = scale;
  if (spec.has_offset() && !given.offset) given.offset = offset;
  return given;
}

}  // namespace qat
