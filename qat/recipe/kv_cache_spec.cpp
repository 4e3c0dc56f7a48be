#include "qat/recipe/kv_cache_spec.h"

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

std::string describe_side(const QuantSpec& spec) {
  std::string text = dtype_name(spec) + " " + name_of(spec.granularity);
  if (grouped(spec)) text += " " + std::to_string(spec.group_size);
  if (!spec.is_float8() && !spec.symmetric()) text += " asymmetric";
  return text;
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
  QuantSpec spec;
  spec.scale = {ScaleCode::float32};
  const bool float8 = read_dtype(section, spec, {Grid::e4m3, Grid::e5m2});
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
  read_cache_observer(section, cache);
  cache.recent = section.integer("recent", 0, 0, 1 << 20);
  cache.first = section.integer("first", 0, 0, 1 << 20);
  section.finish();
  return cache;
}

}  // namespace qat
