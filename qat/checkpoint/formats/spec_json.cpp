#include "qat/checkpoint/formats/spec_json.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qat/error.h"
#include "qat/ops/checks.h"

namespace qat {
namespace {

using nlohmann::json;

int64_t positive(const json& value, const char* what) {
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > (1 << 20))
    throw InvalidArgument(std::string(what) + " must be a positive integer");
  return value.get<int64_t>();
}

std::string text_of(const json& object, const char* key) {
  if (!object.contains(key) || !object[key].is_string())
    throw InvalidArgument(std::string(key) + " must be a name");
  return object[key].get<std::string>();
}

// What c10 throws of a name that torchqat does not know, as an InvalidArgument.
template <typename Parse>
auto known(const char* what, const std::string& name, const Parse& parse) {
  try {
    return parse("checkpoint", name);
  } catch (const c10::Error&) {
    throw InvalidArgument(std::string(what) + " must be one that torchqat knows, but is " + name);
  }
}

json outer_json(const ScaleSpec& scale) {
  return {{"dtype", name_of(scale.outer_dtype)}, {"block", scale.outer_block}};
}

// Sides of the blocks of outer scales; -1 is a whole axis.
void read_outer(const json& object, ScaleSpec& scale) {
  if (!object.is_object()) throw InvalidArgument("outer_scale must be an object");
  scale.outer_dtype = parse_dtype(text_of(object, "dtype"));
  const json block = object.value("block", json());
  if (!block.is_array() || block.size() != 2)
    throw InvalidArgument("block of outer_scale must be two sides");
  for (size_t side : {0, 1})
    scale.outer_block[side] =
        block[side] == -1 ? -1 : positive(block[side], "block of outer_scale");
}

// The combinations that the operators take.
void check_quantizer(const QuantSpec& spec) {
  const std::string text = quantizer_of(spec, spec.bits, Quantizer::Mode::fixed).text();
  try {
    Quantizer::parse(text);
  } catch (const c10::Error&) {
    throw InvalidArgument("the quantizer must be one that torchqat has, but is " + text);
  }
}

}  // namespace

json to_json(const QuantSpec& spec) {
  json object = {{"bits", spec.bits},
                 {"grid", grid_name(spec.grid)},
                 {"granularity", name_of(spec.granularity)},
                 {"scale_dtype", scale_code_name(spec.scale.code)},
                 {"dynamic", spec.dynamic}};
  if (spec.scale.has_outer()) object["outer_scale"] = outer_json(spec.scale);
  if (spec.granularity == Granularity::group) object["group_size"] = spec.group_size;
  if (spec.granularity == Granularity::block) object["block"] = spec.block;
  return object;
}

QuantSpec spec_from_json(const json& object) {
  if (!object.is_object()) throw InvalidArgument("a spec must be an object");
  QuantSpec spec;
  spec.bits = static_cast<int>(positive(object.value("bits", json()), "bits"));
  if (spec.bits < 2 || spec.bits > 8)
    throw InvalidArgument("bits must be 2 to 8, but is " + std::to_string(spec.bits));
  spec.grid = known("grid", text_of(object, "grid"), parse_grid);
  if (spec.is_named() && spec.bits != named_bits(spec.grid))
    throw InvalidArgument("bits of " + std::string(grid_name(spec.grid)) + " must be " +
                          std::to_string(named_bits(spec.grid)) + ", but is " +
                          std::to_string(spec.bits));
  spec.granularity = parse_granularity(text_of(object, "granularity"));
  spec.scale.code = known("scale_dtype", text_of(object, "scale_dtype"), parse_scale_code);
  if (object.contains("outer_scale")) read_outer(object["outer_scale"], spec.scale);
  spec.dynamic = object.value("dynamic", json(false)) == json(true);
  if (spec.granularity == Granularity::group)
    spec.group_size = positive(object.value("group_size", json()), "group_size");
  if (spec.granularity == Granularity::block) {
    const json block = object.value("block", json());
    if (!block.is_array() || block.size() != 2) throw InvalidArgument("block must be two sides");
    for (size_t side : {0, 1}) spec.block[side] = positive(block[side], "block");
  }
  check_quantizer(spec);
  return spec;
}

}  // namespace qat
