#include "qat/recipe/spec_reader.h"

#include <algorithm>

#include "qat/ops/checks.h"
#include "qat/recipe/mixes.h"
#include "qat/recipe/presets.h"

namespace qat {
namespace {

const std::vector<std::string> kDtypes{"int2", "int3", "int4", "int5", "int6", "int7", "int8"};

const NameTable<Range> kInputRanges("scale", {{Range::minmax, name_of(Range::minmax)},
                                              {Range::fixed, name_of(Range::fixed)},
                                              {Range::learned, name_of(Range::learned)}});
const NameTable<Range> kWeightRanges("scale", {{Range::minmax, name_of(Range::minmax)},
                                               {Range::absmean, name_of(Range::absmean)},
                                               {Range::fixed, name_of(Range::fixed)},
                                               {Range::learned, name_of(Range::learned)}});
const NameTable<Grid> kGrids("grid", {{Grid::narrow, grid_name(Grid::narrow)},
                                      {Grid::full, grid_name(Grid::full)},
                                      {Grid::extreme, grid_name(Grid::extreme)}});

const std::vector<Grid> kFloats{Grid::e2m1, Grid::e2m3, Grid::e3m2, Grid::e4m3, Grid::e5m2};
const std::vector<std::string> kScaleDtypes{"float32",    "bfloat16",          "float16",
                                            "e8m0_floor", "e8m0_even",         "e8m0_ceil",
                                            "e4m3",       "e4m3_four_over_six"};
const std::vector<std::string> kPowersOfTwo{"e8m0_floor", "e8m0_even", "e8m0_ceil"};
const std::vector<std::string> kE4m3{"e4m3", "e4m3_four_over_six"};

std::vector<std::string> preset_names(TensorRole role) {
  std::vector<std::string> names;
  for (const Preset& preset : presets())
    if (role == TensorRole::weight || preset.for_inputs()) names.emplace_back(preset.name);
  return names;
}

void reject_keys(YamlSection& section, const std::vector<const char*>& keys,
                 const std::string& rule) {
  for (const char* key : keys)
    if (section.has(key)) section.reject(key, rule);
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

// How the scale of a weight or input is found.
void read_range(YamlSection& section, TensorRole role, bool keeps_scales, QuantSpec& spec) {
  spec.range = section.one_of("scale", keeps_scales ? Range::fixed : Range::minmax,
                              role == TensorRole::weight ? kWeightRanges : kInputRanges);
  if (keeps_scales && spec.finds_scale())
    section.reject("scale",
                   "must be mse or learned, since initialize chooses codes for scales that stay");
}

// Engines find the scales of inputs by their own rule, a / 6.
void check_four_over_six(YamlSection& section, TensorRole role, const QuantSpec& spec) {
  if (role != TensorRole::weight)
    section.reject("scale_dtype", "must be e4m3 for an input, whose scales engines find as a / 6");
  if (spec.grid != Grid::e2m1 || !(section.has("outer_scale") || spec.scale.has_outer()))
    section.reject("scale_dtype",
                   "must be e4m3 unless the weight is fp4_e2m1 under an outer_scale");
}

// The keys `scale_dtype` and `outer_scale`.
void read_scale(YamlSection& section, TensorRole role, QuantSpec& spec) {
  const char* fallback = role == TensorRole::weight ? "bfloat16" : "float32";
  spec.scale.code =
      parse_scale_code("recipe", section.one_of("scale_dtype", fallback, kScaleDtypes));
  const bool refused = is_power_of_two(spec.scale.code)
                           ? spec.grid != Grid::narrow && !spec.is_float()
                           : !has_sign(spec.scale.code) && spec.grid == Grid::extreme;
  if (refused)
    section.reject(
        "scale_dtype",
        std::string("must be float32, bfloat16 or float16 for the grid ") + grid_name(spec.grid));
  if (spec.scale.code == ScaleCode::e4m3_four_over_six) check_four_over_six(section, role, spec);
  if (!section.has("outer_scale")) return;
  YamlSection outer = section.section("outer_scale");
  if (dtype_of(spec.scale.code) || is_power_of_two(spec.scale.code))
    section.reject("outer_scale", "must not be given unless scale_dtype is e4m3");
  spec.scale.outer_dtype = parse_dtype(outer.one_of("dtype", "float32", {"float32", "float16"}));
  spec.scale.outer_block = {-1, -1};
  if (const auto columns = outer.given_integer("group_size", 1, 1 << 20))
    spec.scale.outer_block = {1, *columns};
  outer.finish();
}

// A dtype that names groups and scales as well.
void read_preset(YamlSection& section, const Preset& preset, TensorRole role, QuantSpec& spec) {
  spec = preset.spec;
  const std::string name = preset.name;
  reject_keys(section, {"symmetric", "grid", "granularity", "group_size", "block", "outer_scale"},
              "must not be given for " + name + ", which has groups of " +
                  std::to_string(spec.group_size) + " and scales of its own");
  if (!preset.is_mx() && spec.scale.code != ScaleCode::e4m3)
    reject_keys(section, {"scale_dtype"}, "must not be given for " + name);
  else if (section.has("scale_dtype"))
    spec.scale.code =
        parse_scale_code("recipe", section.one_of("scale_dtype", scale_code_name(spec.scale.code),
                                                  preset.is_mx() ? kPowersOfTwo : kE4m3));
  if (spec.scale.code == ScaleCode::e4m3_four_over_six) check_four_over_six(section, role, spec);
}

// Types by what each layer is, in place of a dtype; the spec is that of most.
std::string read_mix(YamlSection& section, QuantSpec& spec) {
  const std::string mix = section.one_of("mix", mix_names().front(), mix_names());
  spec = mix_base(mix).spec;
  reject_keys(section,
              {"dtype", "symmetric", "grid", "granularity", "group_size", "block", "scale_dtype",
               "outer_scale"},
              "must not be given beside mix, which has types of its own");
  return mix;
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
  section.takes("block", "sides", {});
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

// What shares an outer scale is whole groups, of a weight or of an input that is found in each call.
void check_outer_scale(YamlSection& section, bool is_weight, const QuantSpec& spec) {
  if (!section.has("outer_scale")) return;
  const auto block = block_shape(spec), outer = spec.scale.outer_block;
  const auto whole = [&](size_t side) {
    return outer[side] == -1 || (block[side] > 0 && outer[side] % block[side] == 0);
  };
  if (!whole(0) || !whole(1))
    section.reject("outer_scale", "must have a group_size that is a multiple of the weight's");
  if (!is_weight && !spec.dynamic)
    section.reject("outer_scale", "must not be given for an input whose scale is calibrated");
}

// The scales of an input in groups of a preset are found anew in every call, under an outer scale
// that is calibrated, or found likewise.
void read_preset_input(YamlSection& section, const Preset& preset, QuantSpec& spec) {
  spec.dynamic = section.boolean("dynamic", !spec.scale.has_outer());
  if (!spec.dynamic && !spec.scale.has_outer())
    section.reject("dynamic", std::string("must be true for ") + preset.name +
                                  ", whose groups "
                                  "have a scale each");
  if (spec.range != Range::minmax)
    section.reject("scale", std::string("must be minmax for an input in ") + preset.name);
  read_observer(section, spec);
}

}  // namespace

bool read_dtype(YamlSection& section, QuantSpec& spec, const std::vector<Grid>& floats,
                const std::vector<std::string>& presets) {
  const YAML::Node dtype = section.child("dtype");
  const std::string name = dtype.IsDefined() ? text_of(dtype) : "";
  std::vector<std::string> allowed = kDtypes;
  for (const Grid grid : floats) allowed.emplace_back(grid_name(grid));
  allowed.insert(allowed.end(), presets.begin(), presets.end());
  section.takes("dtype", "word", allowed);
  section.require("dtype");
  for (const Grid grid : floats) {
    if (name != grid_name(grid)) continue;
    spec.grid = grid;
    spec.bits = named_bits(grid);
    return true;
  }
  if (const auto bits = bits_of(name))
    spec.bits = *bits;
  else if (const auto& mixes = mix_names();
           std::find(mixes.begin(), mixes.end(), name) != mixes.end() && !presets.empty())
    section.reject("dtype", "must be one type; a mix of types is given by mix: " + name);
  else
    section.reject("dtype", "must be " + detail::join(allowed));
  return false;
}

const std::vector<std::string>& integer_dtypes() { return kDtypes; }

int parse_bits(YamlSection& section, const YAML::Node& node, const std::string& key) {
  if (const auto bits = bits_of(text_of(node))) return *bits;
  section.file(node, section.path_of(key) + " must be " + detail::join(kDtypes) + ", but is " +
                         text_of(node));
  return 8;
}

Choice read_choice(YamlSection& rule, const std::string& key, TensorRole role, bool keeps_scales) {
  rule.takes(key, "word", {"float"});
  const YAML::Node node = rule.child(key);
  if (!node.IsDefined()) return {};
  if (node.IsScalar()) {
    if (node.Scalar() != "float") rule.reject(key, "must be a map with a dtype, or float");
    return {true, std::nullopt};
  }
  YamlSection section = rule.section(key);
  const bool is_weight = role == TensorRole::weight;
  const YAML::Node dtype = section.child("dtype");
  const Preset* preset = dtype.IsDefined() ? find_preset(text_of(dtype)) : nullptr;
  QuantSpec spec;
  std::string mix, block_key;
  if (is_weight && section.has("mix")) {
    mix = read_mix(section, spec);
    read_range(section, role, keeps_scales, spec);
  } else if (preset && (is_weight || preset->for_inputs())) {
    read_preset(section, *preset, role, spec);
    read_range(section, role, keeps_scales, spec);
    if (!is_weight) read_preset_input(section, *preset, spec);
  } else {
    if (read_dtype(section, spec, kFloats, preset_names(role)))
      reject_keys(section, {"symmetric", "grid"}, "must not be given for a dtype that is a float");
    else
      read_grid(section, spec);
    read_range(section, role, keeps_scales, spec);
    read_scale(section, role, spec);
    if (is_weight)
      read_weight_granularity(section, spec);
    else
      read_input_granularity(section, spec);
    if (spec.granularity == Granularity::group) block_key = section.path_of("group_size");
    if (spec.granularity == Granularity::block) block_key = section.path_of("block");
  }
  check_outer_scale(section, is_weight, spec);
  if (spec.range == Range::absmean && !spec.ternary())
    section.reject("scale",
                   "must not be absmean unless the weight is -1, 0 and 1, by dtype tq2_0, or int2 "
                   "on the grid narrow, under scales in float32, bfloat16 or float16");
  section.finish();
  return {true, spec, mix, block_key};
}

std::optional<int> read_stage_bits(YamlSection& stage, const std::string& key) {
  std::vector<std::string> allowed = kDtypes;
  allowed.push_back("float");
  stage.takes(key, "word", allowed);
  const YAML::Node node = stage.child(key);
  if (!node.IsDefined()) return std::nullopt;
  if (node.IsScalar() && node.Scalar() == "float") return kFloat;
  const auto bits = bits_of(text_of(node));
  if (!bits) stage.reject(key, "must be " + detail::join(allowed));
  return bits;
}

}  // namespace qat
