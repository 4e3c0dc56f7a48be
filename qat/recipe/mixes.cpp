#include "qat/recipe/mixes.h"

#include <algorithm>
#include <map>
#include <set>

#include "qat/error.h"
#include "qat/recipe/layer_roles.h"

namespace qat {
namespace {

// What the rules ask of a model as a whole.
struct Shape {
  int64_t blocks = 0;
  int64_t experts = 0;
  int64_t queries_per_key = 1;
  bool tied = true;                   // the embedding is the output head as well
  std::map<int64_t, int64_t> values;  // by its block, the place of a layer among all of its kind

  // A model of 80 blocks whose heads share their values, which cost little there.
  bool is_70b() const { return blocks == 80 && queries_per_key > 1; }
};

bool is_value(Role role) { return role == Role::value || role == Role::query_key_value; }

Shape shape_of(const std::vector<LayerInfo>& layers) {
  Shape shape;
  std::set<int64_t> with_values;
  int64_t queries = 0, values = 0;
  bool shares_embedding = false;  // either of the two may be the one that counts
  for (const LayerInfo& layer : layers) {
    const Role role = role_of(layer);
    const int64_t block = block_of(layer.name);
    if (role == Role::head && layer.counted) shape.tied = false;
    if (role == Role::embedding && !layer.counted) shares_embedding = true;
    if (block < 0 || role == Role::embedding || role == Role::head) continue;
    shape.blocks = std::max(shape.blocks, block + 1);
    shape.experts = std::max(shape.experts, experts_of(layer));
    if (is_value(role)) with_values.insert(block);
    if (role == Role::attention_output) queries = layer.in_features;
    if (role == Role::value) values = layer.out_features;
    if (role == Role::query_key_value && queries > 0 && layer.out_features > queries)
      values = (layer.out_features - queries) / 2;
  }
  shape.tied |= shares_embedding;
  if (values > 0) shape.queries_per_key = std::max<int64_t>(1, queries / values);
  for (const int64_t block : with_values) {
    const auto place = static_cast<int64_t>(shape.values.size());
    shape.values[block] = place;
  }
  return shape;
}

// Whether the layer at `place` of `count` is among those that a mix spends more bits on: the first
// and the last eighth, and every third between them.
bool gets_more(int64_t place, int64_t count) {
  return place < count / 8 || place >= 7 * count / 8 || (place - count / 8) % 3 == 2;
}

std::string value_type(const std::string& mix, const std::string& base, int64_t place,
                       const Shape& shape) {
  if (shape.experts == 8) return "q8_0";
  const auto count = static_cast<int64_t>(shape.values.size());
  std::string type = base;
  if (mix == "q2_k") type = shape.queries_per_key >= 4 ? "q4_k" : "q3_k";
  if (mix == "q3_k_m") type = place < 2 ? "q5_k" : "q4_k";
  if (mix == "q3_k_l" || (mix == "q4_k_s" && place < 4)) type = "q5_k";
  if ((mix == "q4_k_m" || mix == "q5_k_m") && gets_more(place, count)) type = "q6_k";
  return shape.is_70b() && (type == "q3_k" || type == "q4_k") ? "q5_k" : type;
}

std::string down_type(const std::string& mix, const std::string& base, int64_t block,
                      const Shape& shape) {
  if (mix == "q2_k") return "q3_k";
  if (mix == "q3_k_m") return block < shape.blocks / 16 ? "q5_k" : "q4_k";
  if (mix == "q3_k_l" || (mix == "q4_k_s" && block < shape.blocks / 8)) return "q5_k";
  const bool more = (mix == "q4_k_m" || mix == "q5_k_m") && gets_more(block, shape.blocks);
  return more ? "q6_k" : base;
}

std::string output_type(const std::string& mix, const std::string& base, const Shape& shape) {
  if (shape.experts == 8)
    return base == "q2_k" || base == "q4_k" || mix == "q3_k_s" || mix == "q3_k_m" ? "q5_k" : base;
  return mix == "q2_k" ? "q3_k" : mix == "q3_k_m" ? "q4_k" : mix == "q3_k_l" ? "q5_k" : base;
}

std::string wanted(const std::string& mix, const std::string& base, const LayerInfo& layer,
                   const Shape& shape) {
  const int64_t block = block_of(layer.name);
  switch (role_of(layer)) {
    case Role::head:
      return "q6_k";
    case Role::embedding:
      return shape.tied ? "q6_k" : base;
    case Role::value:
    case Role::query_key_value:
      return value_type(mix, base, shape.values.count(block) ? shape.values.at(block) : 0, shape);
    case Role::key:
      return shape.experts == 8 ? "q8_0" : base;
    case Role::attention_output:
      return output_type(mix, base, shape);
    case Role::down:
      return down_type(mix, base, block, shape);
    case Role::other:
      break;
  }
  return base;
}

// What stands in for a type of super-blocks where they do not fit.
std::string fallback_of(const std::string& type) {
  return type == "q4_k" ? "q5_0" : type == "q5_k" ? "q5_1" : type == "q6_k" ? "q8_0" : "q4_0";
}

MixedType fitted(const std::string& mix, const std::string& type, int64_t columns) {
  if (columns % 32 != 0) return {};
  if (columns % 256 == 0 || type == "q8_0") return {find_preset(type), type + " of " + mix};
  const std::string other = fallback_of(type);
  return {find_preset(other), other + " of " + mix + ", in place of " + type +
                                  ", whose 256 do not divide " + std::to_string(columns)};
}

}  // namespace

const std::vector<std::string>& mix_names() {
  static const std::vector<std::string> kNames{"q2_k",   "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s",
                                               "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"};
  return kNames;
}

const Preset& mix_base(const std::string& mix) { return *find_preset(mix.substr(0, 4)); }

std::vector<MixedType> mix_types(const std::string& mix, const std::vector<LayerInfo>& layers) {
  const Shape shape = shape_of(layers);
  std::vector<MixedType> types;
  for (const LayerInfo& layer : layers)
    types.push_back(fitted(mix, wanted(mix, mix_base(mix).name, layer, shape), layer.in_features));
  return types;
}

}  // namespace qat
