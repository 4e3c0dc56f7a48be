#include "qat/recipe/spec_reader.h"

#include "qat/ops/checks.h"

namespace qat {
namespace {

const std::vector<std::string> kDtypes{"int2", "int3", "int4", "int5", "int6", "int7", "int8"};

const NameTable<Range> kRanges("scale", {{Range::minmax, name_of(Range::minmax)},
                                         {Range::fixed, name_of(Range::fixed)},
                                         {Range::learned, name_of(Range::learned)}});
const NameTable<Grid> kGrids("grid", {{Grid::narrow, grid_name(Grid::narrow)},
                                      {Grid::full, grid_name(Grid::full)},
                                      {Grid::extreme, grid_name(Grid::extreme)}});

// The FP8 grid that a dtype names, if it does.
std::optional<Grid> float8_of(const std::string& dtype) {
  for (const Grid grid : {Grid::e4m3, Grid::e5m2})
    if (dtype == grid_name(grid)) return grid;
  return std::nullopt;
}

// Keys that only integer grids have.
void reject_integer_keys(YamlSection& section) {
  for (const auto* key : {"symmetric", "grid"})
    if (section.has(key)) section.reject(key, "must not be given for an FP8 dtype");
  if (section.one_of("scale", Range::minmax, kRanges) != Range::minmax)
    section.reject("scale", "must be minmax for an FP8 dtype");
}

std::optional<int> bits_of(const std::string& dtype) {
  for (const auto& known : kDtypes)
    if (dtype == known) return dtype.back() - '0';
  return std::nullopt;
}

void read_grid(YamlSection& section, QuantSpec& spec) {
  const bool symmetric = section.boolean("symmetric", true);
  const Grid grid = section.one_of("grid", Grid::narrow, kGrids);
  if (!symmetric && section.has("grid"))
    section.reject("grid", "must not be given when symmetric is false");
  spec.grid = symmetric ? grid : Grid::asymmetric;
}

void read_group_size(YamlSection& section, QuantSpec& spec) {
  spec.group_size = section.integer("group_size", 0, 1, 1 << 20);
  if (spec.granularity == Granularity::group && spec.group_size == 0 && !section.has("group_size"))
    section.reject("group_size", "must be given for granularity group");
  if (spec.granularity != Granularity::group && section.has("group_size"))
    section.reject("group_size",
                   std::string("must not be given for granularity ") + name_of(spec.granularity));
}

void read_weight_granularity(YamlSection& section, QuantSpec& spec) {
  const std::string fallback = section.has("group_size") ? "group"
                               : section.has("block")    ? "block"
                                                         : "channel";
  spec.granularity = parse_granularity(
      section.one_of("granularity", fallback, {"tensor", "channel", "group", "block"}));
  read_group_size(section, spec);
  const auto sides = section.list("block");
  if (spec.granularity == Granularity::block) {
    const auto side = [&](size_t i) {
      return i < sides.size() ? integer_of(sides[i]).value_or(0) : 0;
    };
    spec.block = {side(0), side(1)};
    if (sides.size() != 2 || spec.block[0] < 1 || spec.block[1] < 1)
      section.reject("block", "must be two positive sides, such as [128, 128]");
  } else if (section.has("block")) {
    section.reject("block",
                   std::string("must not be given for granularity ") + name_of(spec.granularity));
  }
}

void read_input_granularity(YamlSection& section, QuantSpec& spec) {
  const std::string fallback = section.has("group_size") ? "group" : "token";
  spec.granularity =
      parse_granularity(section.one_of("granularity", fallback, {"token", "tensor", "group"}));
  read_group_size(section, spec);
  const bool whole = spec.granularity == Granularity::tensor;
  spec.dynamic = section.boolean("dynamic", !whole);
  if (!whole && !spec.dynamic)
    section.reject("dynamic",
                   std::string("must be true for granularity ") + name_of(spec.granularity));
  if (spec.dynamic && spec.range != Range::minmax)
    section.reject("scale", "must be minmax for a dynamic input");
  read_observer(section, spec);
}

void read_integer(YamlSection& section, bool keeps_scales, QuantSpec& spec) {
  read_grid(section, spec);
  spec.range = section.one_of("scale", keeps_scales ? Range::fixed : Range::minmax, kRanges);
  if (keeps_scales && spec.range == Range::minmax)
    section.reject("scale",
                   "must be mse or learned, since initialize chooses codes for scales that stay");
}

}  // namespace

bool read_dtype(YamlSection& section, QuantSpec& spec) {
  const YAML::Node dtype = section.child("dtype");
  const std::string name = dtype.IsDefined() ? text_of(dtype) : "";
  if (const auto float8 = float8_of(name)) {
    spec.grid = *float8;
    return true;
  }
  std::vector<std::string> allowed = kDtypes;
  allowed.insert(allowed.end(), {"fp8_e4m3", "fp8_e5m2"});
  if (const auto bits = bits_of(name))
    spec.bits = *bits;
  else
    section.reject("dtype", "must be " + join(allowed));
  return false;
}

// A range that is searched once is Range::fixed, whatever the search minimises, or the start of a
// learned one.
void read_observer(YamlSection& section, QuantSpec& spec) {
  ObserverSpec& observer = spec.observer;
  if (spec.dynamic) {
    for (const auto* key : {"observer", "percentile", "averaging_constant"})
      if (section.has(key)) section.reject(key, "must not be given for a dynamic input");
    return;
  }
  std::vector<std::string> allowed{"minmax", "moving_average", "percentile"};
  if (!spec.is_float8()) allowed.insert(allowed.end(), {"mse", "entropy"});
  const bool searched = spec.range != Range::minmax;
  observer.kind = parse_observer(section.one_of("observer", searched ? "mse" : "minmax", allowed));
  observer.percentile = section.number("percentile", observer.percentile, 50.0, 100.0);
  observer.averaging_constant =
      section.number("averaging_constant", observer.averaging_constant, 1e-6, 1.0);
  for (const auto& [key, kind] : {std::pair("percentile", ObserverKind::percentile),
                                  std::pair("averaging_constant", ObserverKind::moving_average)})
    if (section.has(key) && observer.kind != kind)
      section.reject(key, std::string("must not be given for observer ") + name_of(observer.kind));
  if (observer.kind == ObserverKind::entropy && (!spec.symmetric() || spec.bits != 8))
    section.reject("observer", "must not be entropy unless the input is a symmetric int8");
  if (section.has("scale") && spec.range == (follows(observer.kind) ? Range::fixed : Range::minmax))
    section.reject("scale", std::string("must not be ") + name_of(spec.range) + " for observer " +
                                name_of(observer.kind));
  if (!follows(observer.kind) && spec.range == Range::minmax) spec.range = Range::fixed;
}

int parse_bits(YamlSection& section, const YAML::Node& node, const std::string& key) {
  if (const auto bits = bits_of(text_of(node))) return *bits;
  section.file(node,
               section.path_of(key) + " must be " + join(kDtypes) + ", but is " + text_of(node));
  return 8;
}

Choice read_choice(YamlSection& rule, const std::string& key, TensorRole role, bool keeps_scales) {
  const YAML::Node node = rule.child(key);
  if (!node.IsDefined()) return {};
  if (node.IsScalar()) {
    if (node.Scalar() != "float") rule.reject(key, "must be a map with a dtype, or float");
    return {true, std::nullopt};
  }
  YamlSection section = rule.section(key);
  QuantSpec spec;
  if (read_dtype(section, spec))
    reject_integer_keys(section);
  else
    read_integer(section, keeps_scales, spec);
  spec.scale_dtype =
      parse_dtype(section.one_of("scale_dtype", role == TensorRole::weight ? "bfloat16" : "float32",
                                 {"float32", "bfloat16", "float16"}));
  if (role == TensorRole::weight)
    read_weight_granularity(section, spec);
  else
    read_input_granularity(section, spec);
  section.finish();
  return {true, spec};
}

std::optional<int> read_stage_bits(YamlSection& stage, const std::string& key) {
  const YAML::Node node = stage.child(key);
  if (!node.IsDefined()) return std::nullopt;
  if (node.IsScalar() && node.Scalar() == "float") return kFloat;
  const auto bits = bits_of(text_of(node));
  std::vector<std::string> allowed = kDtypes;
  allowed.push_back("float");
  if (!bits) stage.reject(key, "must be " + join(allowed));
  return bits;
}

}  // namespace qat
