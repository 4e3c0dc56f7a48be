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

Grid grid_from(const std::string& name) {
  for (const Grid grid :
       {Grid::narrow, Grid::full, Grid::extreme, Grid::e4m3, Grid::e5m2, Grid::asymmetric})
    if (name == grid_name(grid)) return grid;
  throw InvalidArgument("grid must be one that torchqat knows, but is " + name);
}

}  // namespace

json to_json(const QuantSpec& spec) {
  json object = {{"bits", spec.bits},
                 {"grid", grid_name(spec.grid)},
                 {"granularity", name_of(spec.granularity)},
                 {"scale_dtype", name_of(spec.scale_dtype)},
                 {"dynamic", spec.dynamic}};
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
  spec.grid = grid_from(text_of(object, "grid"));
  spec.granularity = parse_granularity(text_of(object, "granularity"));
  spec.scale_dtype = parse_dtype(text_of(object, "scale_dtype"));
  spec.dynamic = object.value("dynamic", json(false)) == json(true);
  if (spec.granularity == Granularity::group)
    spec.group_size = positive(object.value("group_size", json()), "group_size");
  if (spec.granularity == Granularity::block) {
    const json block = object.value("block", json());
    if (!block.is_array() || block.size() != 2) throw InvalidArgument("block must be two sides");
    for (size_t side : {0, 1}) spec.block[side] = positive(block[side], "block");
  }
  return spec;
}

}  // namespace qat
