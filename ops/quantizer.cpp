#include "qat/ops/quantizer.h"

#include <ATen/ops/empty.h>

#include <cstdio>
#include <sstream>

#include "qat/ops/checks.h"
#include "qat/ops/choose_qparams.h"
#include "qat/ops/encode.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/fake_quantize_dynamic.h"
#include "qat/ops/fake_quantize_learned.h"

namespace qat {
namespace {

const char* name_of(Quantizer::Mode mode) {
  switch (mode) {
    case Quantizer::Mode::minmax:
      return "minmax";
    case Quantizer::Mode::fixed:
      return "fixed";
    case Quantizer::Mode::learned:
      return "learned";
    case Quantizer::Mode::none:
      return "";
  }
  return "";
}

std::optional<Quantizer::Mode> mode_of(const std::string& word) {
  using Mode = Quantizer::Mode;
  for (const Mode mode : {Mode::minmax, Mode::fixed, Mode::learned})
    if (word == name_of(mode)) return mode;
  return std::nullopt;
}

const char* name_of(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bfloat16" : dtype == at::kHalf ? "float16" : "float32";
}

std::optional<at::ScalarType> dtype_of(const std::string& word) {
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16})
    if (word == name_of(dtype)) return dtype;
  return std::nullopt;
}

struct Ends {
  int64_t min;
  int64_t max;
};

Ends ends_of(const Quantizer& quantizer) {
  const QuantRange range = range_of(quantizer.grid, quantizer.bits);
  return {static_cast<int64_t>(range.min), static_cast<int64_t>(range.max)};
}

}  // namespace

Quantizer Quantizer::parse(std::string_view text) {
  Quantizer parsed;
  if (text.empty()) return parsed;
  std::istringstream words{std::string(text)};
  std::string mode, width, grid, block, dtype;
  words >> mode >> width >> grid >> block >> dtype;
  const auto known_mode = mode_of(mode);
  const auto known_dtype = dtype_of(dtype);
  const bool sized = std::sscanf(width.c_str(), "int%d", &parsed.bits) == 1 &&
                     std::sscanf(block.c_str(), "%ldx%ld", &parsed.block[0], &parsed.block[1]) == 2;
  TORCH_CHECK_VALUE(known_mode && known_dtype && sized,
                    "[quantizer] must be minmax, fixed or learned, a width such as int4, a grid, a "
                    "block such as 1x32, and the dtype of its scale, but is \"",
                    text, "\".");
  check_bits("quantizer", parsed.bits);
  check_block("quantizer", parsed.block);
  parsed.mode = *known_mode;
  parsed.grid = parse_grid("quantizer", grid);
  parsed.scale_dtype = *known_dtype;
  words >> parsed.gradient_scale;
  if (words.fail()) parsed.gradient_scale = 1.0;
  return parsed;
}

std::string Quantizer::text() const {
  if (!active()) return "";
  std::ostringstream out;
  out.precision(17);
  out << name_of(mode) << " int" << bits << " " << grid_name(grid) << " " << block[0] << "x"
      << block[1] << " " << name_of(scale_dtype);
  if (mode == Mode::learned) out << " " << gradient_scale;
  return out.str();
}

Quantizer::Result Quantizer::operator()(const at::Tensor& x, const Optional& scale,
                                        const Optional& zero_point, at::ScalarType dtype) const {
  const Ends ends = ends_of(*this);
  switch (mode) {
    case Mode::none:
      return {x, {}, {}};
    case Mode::minmax: {
      auto [y, found, zero] =
          fake_quantize_dynamic(x, block, bits, grid_name(grid), scale_dtype, dtype);
      return {y, found, zero};
    }
    case Mode::fixed:
      return {fake_quantize(x, *scale, zero_point, block, ends.min, ends.max, dtype), {}, {}};
    case Mode::learned:
      return {fake_quantize_learned(x, *scale, zero_point, block, ends.min, ends.max, scale_dtype,
                                    gradient_scale, dtype),
              {},
              {}};
  }
  return {};
}

std::vector<at::Tensor> Quantizer::encoded(const at::Tensor& x, const Optional& scale,
                                           const Optional& zero_point) const {
  Optional stored_scale = scale, stored_zero_point = zero_point;
  if (mode == Mode::learned) {
    const Ends ends = ends_of(*this);
    std::tie(stored_scale, stored_zero_point) =
        round_qparams(*scale, zero_point, ends.min, ends.max, scale_dtype);
  }
  const auto [codes, kept_scale, kept_zero_point] =
      encode(x, stored_scale, stored_zero_point, block, bits, grid_name(grid), scale_dtype);
  return {codes, kept_scale, kept_zero_point};
}

at::Tensor Quantizer::decoded(at::TensorList encoded, c10::SymInt cols,
                              at::ScalarType dtype) const {
  return decode(encoded[0], encoded[1], encoded[2], block, bits, grid_name(grid), std::move(cols),
                dtype);
}

std::tuple<at::Tensor, at::Tensor> Quantizer::backward_inplace(at::Tensor& grad,
                                                               const at::Tensor& x,
                                                               const Optional& scale,
                                                               const Optional& zero_point,
                                                               const Result& found) const {
  const Ends ends = ends_of(*this);
  const at::Tensor none = at::empty({0}, x.options().dtype(at::kFloat));
  if (mode == Mode::learned)
    return fake_quantize_learned_backward_inplace(grad, x, *scale, zero_point, block, ends.min,
                                                  ends.max, scale_dtype, gradient_scale);
  if (!active() || never_clips()) return {none, none};
  if (mode == Mode::fixed) {
    fake_quantize_backward_inplace(grad, x, *scale, zero_point, block, ends.min, ends.max);
    return {none, none};
  }
  const auto [range_scale, range_zero] =
      found.scale.defined()
          ? std::tuple(found.scale, found.zero_point)
          : choose_qparams(x, block, bits, grid_name(grid), "minmax", scale_dtype);
  fake_quantize_backward_inplace(grad, x, range_scale, range_zero, block, ends.min, ends.max);
  return {none, none};
}

}  // namespace qat
