#include "qat/recipe/kv_cache_spec.h"

#include "qat/names.h"
#include "qat/recipe/presets.h"
#include "qat/recipe/spec_reader.h"

namespace qat {
namespace {

// As KIVI (arXiv 2402.02750) and llama.cpp have them.
constexpr int64_t kGroup = 32;

bool given_beforehand(const QuantSpec& spec) {
  return spec.granularity == Granularity::tensor || spec.granularity == Granularity::head;
}

bool grouped(const QuantSpec& spec) {
  return spec.granularity == Granularity::group || spec.granularity == Granularity::channel;
}

void read_side(YamlSection& section, const char* key, const char* fallback,
               const std::vector<std::string>& allowed, QuantSpec& spec) {
  spec.granularity = parse_granularity(section.one_of(key, fallback, allowed));
  spec.dynamic = !given_beforehand(spec);
  if (grouped(spec)) spec.group_size = section.integer("group_size", kGroup, 1, 1 << 20);
  if (!spec.dynamic && spec.grid == Grid::asymmetric)
    section.reject(key, "must be token, group or channel unless symmetric is true");
}

// One observer for both sides.
void read_cache_observer(YamlSection& section, KvCacheSpec& cache) {
  if (!cache.calibrated()) {
    for (const auto* key : {"observer", "percentile", "averaging_constant"})
      if (section.has(key))
        section.reject(key, "must not be given unless keys or values are tensor or head");
    return;
  }
  QuantSpec& fixed = cache.key.dynamic ? cache.value : cache.key;
  read_observer(section, fixed);
  cache.key.observer = cache.value.observer = fixed.observer;
}

// The number types in blocks that a cache may have: those that are found anew in every call.
std::vector<std::string> block_types() {
  std::vector<std::string> names;
  for (const Preset& preset : presets())
    if (preset.for_inputs()) names.emplace_back(preset.name);
  return names;
}

// NVFP4's scales are E4M3 numbers as they are, which engines have where they are given no outer
// scale, or multiples of one from calibration.
void read_block_type(YamlSection& section, const Preset& preset, KvCacheSpec& cache) {
  QuantSpec spec = preset.spec;
  const std::string name = preset.name;
  for (const auto* key : {"symmetric", "keys", "values", "group_size"})
    if (section.has(key))
      section.reject(key, "must not be given for " + name + ", which has groups of " +
                              std::to_string(spec.group_size) + " and scales of its own");
  if (preset.is_mx()) {
    spec.scale.code =
        parse_scale_code("recipe", section.one_of("scale_dtype", scale_code_name(spec.scale.code),
                                                  {"e8m0_floor", "e8m0_even", "e8m0_ceil"}));
  } else if (!section.boolean("calibrated", false)) {
    spec.scale.outer_block = {0, 0};
  }
  spec.dynamic = !spec.scale.has_outer();
  cache.key = cache.value = spec;
}

std::string describe_block_type(const QuantSpec& spec) {
  QuantSpec known = spec;
  if (spec.scale.code == ScaleCode::e4m3) known.scale.outer_block = {-1, -1};
  const Preset* preset = preset_of(known);
  std::string text = preset ? preset->name : dtype_name(spec);
  if (is_power_of_two(spec.scale.code)) text += std::string(" ") + scale_code_name(spec.scale.code);
  return spec.scale.has_outer() ? text + " calibrated" : text;
}

std::string describe_side(const QuantSpec& spec) {
  if (!dtype_of(spec.scale.code)) return describe_block_type(spec);
  std::string text = dtype_name(spec) + " " + name_of(spec.granularity);
  if (grouped(spec)) text += " " + std::to_string(spec.group_size);
  if (!spec.is_float8() && !spec.symmetric()) text += " asymmetric";
  return text;
}

// Whole levels or FP8, under scales that are numbers.
void read_plain(YamlSection& section, KvCacheSpec& cache) {
  QuantSpec spec;
  spec.scale = {ScaleCode::float32};
  const bool float8 = read_dtype(section, spec, {Grid::e4m3, Grid::e5m2}, block_types());
  if (float8 && section.has("symmetric"))
    section.reject("symmetric", "must not be given for an FP8 dtype");
  if (!float8) {
    const bool symmetric = section.boolean("symmetric", false);
    spec.grid = symmetric ? Grid::narrow : Grid::asymmetric;
  }
  cache.key = cache.value = spec;
  read_side(section, "keys", float8 ? "tensor" : "channel",
            {"tensor", "head", "token", "group", "channel"}, cache.key);
  read_side(section, "values", float8 ? "tensor" : "token", {"tensor", "head", "token", "group"},
            cache.value);
  if (section.has("group_size") && !grouped(cache.key) && !grouped(cache.value))
    section.reject("group_size", "must not be given unless keys or values are group or channel");
}

}  // namespace

std::string describe(const KvCacheSpec& spec) {
  std::string text = describe_side(spec.key) + " keys, " + describe_side(spec.value) + " values";
  if (spec.recent > 0)
    text += ", the latest " + std::to_string(spec.recent) + " tokens as they are";
  if (spec.first > 0) text += ", the first " + std::to_string(spec.first) + " as they are";
  return text;
}

KvCacheSpec read_kv_cache(YamlSection& section) {
  KvCacheSpec cache;
  const YAML::Node dtype = section.child("dtype");
  const Preset* preset = dtype.IsDefined() ? find_preset(text_of(dtype)) : nullptr;
  const bool block_type = preset && preset->for_inputs();
  if (block_type)
    read_block_type(section, *preset, cache);
  else
    read_plain(section, cache);
  for (const auto* key : {"scale_dtype", "calibrated"}) {
    const bool fits = block_type && preset->is_mx() == (std::string(key) == "scale_dtype");
    if (section.has(key) && !fits)
      section.reject(key, std::string("must not be given unless dtype is ") +
                              (std::string(key) == "calibrated" ? "nvfp4" : "one of MX"));
  }
  read_cache_observer(section, cache);
  cache.recent = section.integer("recent", 0, 0, 1 << 20);
  cache.first = section.integer("first", 0, 0, 1 << 20);
  section.finish();
  return cache;
}

}  // namespace qat
