#include "qat/ops/quantizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <charconv>

#include "qat/ops/checks.h"
#include "qat/ops/encode.h"
#include "qat/ops/fake_quantize.h"

namespace qat {
namespace {

using Mode = Quantizer::Mode;

// One table a vocabulary: parsing and printing read the same.
template <typename Value>
struct Name {
  Value value;
  std::string_view text;
};

constexpr Name<Mode> kModes[] = {{Mode::minmax, "minmax"},
                                 {Mode::absmean, "absmean"},
                                 {Mode::fixed, "fixed"},
                                 {Mode::learned, "learned"}};
constexpr Name<Grid> kGrids[] = {
    {Grid::narrow, "narrow"},         {Grid::full, "full"},     {Grid::extreme, "signed"},
    {Grid::asymmetric, "asymmetric"}, {Grid::offset, "offset"}, {Grid::iq4_nl, "iq4_nl"},
    {Grid::e2m1, "fp4_e2m1"},         {Grid::e2m3, "fp6_e2m3"}, {Grid::e3m2, "fp6_e3m2"},
    {Grid::e4m3, "fp8_e4m3"},         {Grid::e5m2, "fp8_e5m2"}};
constexpr Name<ScaleCode> kScaleCodes[] = {{ScaleCode::float32, "float32"},
                                           {ScaleCode::bfloat16, "bfloat16"},
                                           {ScaleCode::float16, "float16"},
                                           {ScaleCode::e8m0_floor, "e8m0_floor"},
                                           {ScaleCode::e8m0_even, "e8m0_even"},
                                           {ScaleCode::e8m0_ceil, "e8m0_ceil"},
                                           {ScaleCode::e4m3, "e4m3"},
                                           {ScaleCode::int6, "int6"},
                                           {ScaleCode::int8, "int8"},
                                           {ScaleCode::int4, "int4"},
                                           {ScaleCode::int6_signed, "int6_signed"},
                                           {ScaleCode::e4m3_four_over_six, "e4m3_four_over_six"}};
constexpr Name<c10::ScalarType> kDtypes[] = {
    {at::kFloat, "float32"}, {at::kBFloat16, "bfloat16"}, {at::kHalf, "float16"}};

template <typename Value, size_t kCount>
std::optional<Value> find(const Name<Value> (&names)[kCount], std::string_view text) {
  for (const auto& name : names)
    if (name.text == text) return name.value;
  return std::nullopt;
}

template <typename Value, size_t kCount>
std::string_view name_of(const Name<Value> (&names)[kCount], Value value) {
  for (const auto& name : names)
    if (name.value == value) return name.text;
  return "";
}

// The value of a name; ValueError with all of them for any other.
template <typename Value, size_t kCount>
Value parse_name(const char* op, const char* what, const Name<Value> (&names)[kCount],
                 std::string_view text) {
  if (const auto value = find(names, text)) return *value;
  std::string allowed(names[0].text);
  for (size_t i = 1; i < kCount; ++i) (allowed += i + 1 == kCount ? " or " : ", ") += names[i].text;
  TORCH_CHECK_VALUE(false, "[", op, "] ", what, " must be ", allowed, ", but is ", text, ".");
}

// The whole of `text` as a number, in no locale.
template <typename Number>
bool read(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

std::string written(double number) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), number).ptr};
}

std::string written(const std::array<int64_t, 2>& block) {
  return std::to_string(block[0]) + "x" + std::to_string(block[1]);
}

bool read_block(std::string_view word, std::array<int64_t, 2>& block) {
  const size_t by = word.find('x');
  return by != std::string_view::npos && read(word.substr(0, by), block[0]) &&
         read(word.substr(by + 1), block[1]);
}

// "e4m3" or "e4m3*float32@-1x-1".
bool read_scale(std::string_view word, Quantizer& to) {
  const size_t times = word.find('*');
  const auto code = find(kScaleCodes, word.substr(0, times));
  if (!code) return false;
  to.scale_code = *code;
  if (times == std::string_view::npos) return true;
  const size_t at = word.find('@', times);
  if (at == std::string_view::npos) return false;
  const auto dtype = find(kDtypes, word.substr(times + 1, at - times - 1));
  if (!dtype || !read_block(word.substr(at + 1), to.outer_block)) return false;
  to.outer_dtype = *dtype;
  check_block("quantizer", to.outer_block);
  return true;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t from = 0; from <= text.size();) {
    const size_t end = std::min(text.find(' ', from), text.size());
    words.push_back(text.substr(from, end - from));
    from = end + 1;
  }
  return words;
}

// Reads the words in order; false where one is not what stands there.
bool read_words(const std::vector<std::string_view>& words, Quantizer& to) {
  size_t next = 0;
  const auto word = [&] { return next < words.size() ? words[next++] : std::string_view(); };
  const auto mode = find(kModes, word());
  std::string_view levels = word();
  if (!mode || levels.empty()) return false;
  to.mode = *mode;
  if (levels.substr(0, 3) == "int") {
    if (!read(levels.substr(3), to.bits)) return false;
    levels = word();
  }
  const bool whole = next == 3;
  if (!whole && !find(kGrids, levels)) return false;
  to.grid = parse_grid("quantizer", levels);
  if (is_named(to.grid) == whole) return false;
  if (!whole) to.bits = named_bits(to.grid);
  if (!read_block(word(), to.block) || !read_scale(word(), to)) return false;
  if (next < words.size() && to.mode == Mode::learned && !read(word(), to.gradient_scale))
    return false;
  return next == words.size();
}

}  // namespace

Quantizer Quantizer::parse(std::string_view text) {
  Quantizer parsed;
  if (text.empty()) return parsed;
  TORCH_CHECK_VALUE(
      read_words(words_of(text), parsed),
      "[quantizer] must be minmax, absmean, fixed or learned, a width and a grid such as int4 "
      "narrow, or a float such as fp4_e2m1, a block such as 1x32, what its scale is "
      "stored in, and for learned the factor of its gradients, but is \"",
      text, "\".");
  check_bits("quantizer", parsed.bits);
  check_block("quantizer", parsed.block);
  for (size_t axis = 0; parsed.has_outer_scale() && axis < 2; ++axis) {
    const int64_t outer = parsed.outer_block[axis], block = parsed.block[axis];
    TORCH_CHECK_VALUE(outer == -1 || (block != -1 && outer % block == 0),
                      "[quantizer] sides of an outer block must be multiples of those of its "
                      "blocks, but are ",
                      outer, " and ", block, ".");
  }
  TORCH_CHECK_VALUE(!parsed.has_offset() || parsed.bits < 8,
                    "[quantizer] bits of the grid of offsets must be 2 to 7, since its codes are "
                    "not negative, but is ",
                    parsed.bits, ".");
  TORCH_CHECK_VALUE(
      parsed.scale_code != ScaleCode::e4m3_four_over_six ||
          (parsed.grid == Grid::e2m1 && parsed.has_outer_scale()),
      "[quantizer] e4m3_four_over_six takes the levels fp4_e2m1 under an outer scale, "
      "but is in \"",
      text, "\".");
  TORCH_CHECK_VALUE(
      parsed.mode != Mode::absmean || (parsed.grid == Grid::narrow && parsed.bits == 2 &&
                                       !parsed.has_outer_scale() && dtype_of(parsed.scale_code)),
      "[quantizer] absmean takes the levels int2 narrow under scales in float32, bfloat16 or "
      "float16, but is in \"",
      text, "\".");
  TORCH_CHECK_VALUE(has_sign(parsed.scale_code) || !has_signed_scales(parsed.grid),
                    "[quantizer] scales of the grid ", grid_name(parsed.grid),
                    " may be negative, which ", scale_code_name(parsed.scale_code),
                    " cannot hold.");
  TORCH_CHECK_VALUE(
      !is_power_of_two(parsed.scale_code) || parsed.grid == Grid::narrow || is_float(parsed.grid),
      "[quantizer] scales that are powers of two take a float's levels or narrow ones, not ",
      grid_name(parsed.grid), ".");
  return parsed;
}

std::string Quantizer::text() const {
  if (!active()) return "";
  std::string out(name_of(kModes, mode));
  out += ' ';
  if (!is_named(grid)) out += "int" + std::to_string(bits) + ' ';
  (out += grid_name(grid)) += ' ';
  ((out += written(block)) += ' ') += scale_code_name(scale_code);
  if (has_outer_scale())
    ((out += '*') += name_of(kDtypes, outer_dtype)) += '@' + written(outer_block);
  if (mode == Mode::learned && gradient_scale != 1.0) (out += ' ') += written(gradient_scale);
  return out;
}

Quantizer::Result Quantizer::operator()(const at::Tensor& x, const Parameters& parameters,
                                        at::ScalarType dtype) const {
  if (!active()) return {x.to(dtype), {}, {}};
  auto [values, scale, zero_point] = fake_quantize(
      x, text(), parameters.scale, parameters.zero_point, parameters.outer_scale, dtype);
  if (!finds()) return {values, {}, {}};
  return {values, scale, zero_point};
}

std::vector<at::Tensor> Quantizer::encoded(const at::Tensor& x,
                                           const Parameters& parameters) const {
  const auto [codes, scale, zero_point] =
      encode(x, text(), parameters.scale, parameters.zero_point, parameters.outer_scale);
  return {codes, scale, zero_point};
}

at::Tensor Quantizer::decoded(at::TensorList encoded, c10::SymInt cols,
                              at::ScalarType dtype) const {
  return decode(encoded[0], text(), encoded[1], encoded[2], std::move(cols), dtype);
}

std::tuple<at::Tensor, at::Tensor> Quantizer::backward_inplace(at::Tensor& grad,
                                                               const at::Tensor& x,
                                                               const Parameters& parameters,
                                                               const Result& found) const {
  if (!active() || never_clips()) {
    const auto none = [&] { return at::empty({0}, x.options().dtype(at::kFloat)); };
    return {none(), none()};
  }
  Parameters given = parameters;
  if (finds() && found.scale.defined()) {
    given.scale = found.scale;
    given.zero_point = shifts() ? OptionalTensor(found.zero_point) : std::nullopt;
  }
  const auto& [scale, zero_point, outer_scale] = given;
  if (!at::GradMode::is_enabled() || !grad.requires_grad())
    return fake_quantize_backward_inplace(grad, x, text(), scale, zero_point, outer_scale);
  const auto [grad_x, grad_scale, grad_zero] =
      fake_quantize_backward(grad, x, text(), scale, zero_point, outer_scale);
  grad = grad_x;
  return {grad_scale, grad_zero};
}

const char* grid_name(Grid grid) { return name_of(kGrids, grid).data(); }

Grid parse_grid(const char* op, std::string_view name) {
  return parse_name(op, "grid", kGrids, name);
}

const char* scale_code_name(ScaleCode code) { return name_of(kScaleCodes, code).data(); }

ScaleCode parse_scale_code(const char* op, std::string_view name) {
  return parse_name(op, "scale_dtype", kScaleCodes, name);
}

std::optional<c10::ScalarType> dtype_of(ScaleCode code) {
  return find(kDtypes, scale_code_name(code));
}

ScaleCode scale_code_of(c10::ScalarType dtype) {
  return dtype == at::kBFloat16 ? ScaleCode::bfloat16
         : dtype == at::kHalf   ? ScaleCode::float16
                                : ScaleCode::float32;
}

int named_bits(Grid grid) {
  if (!is_named(grid)) return 0;
  return grid == Grid::e2m1 || grid == Grid::iq4_nl ? 4 : is_float8(grid) ? 8 : 6;
}

}  // namespace qat
