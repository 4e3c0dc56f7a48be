#include "qat/recipe/layer_roles.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace qat {
namespace {

// Whole last parts of a name; those with a parent come first where the last part alone says less.
constexpr std::pair<std::string_view, Role> kRoles[] = {
    {"attn.c_proj", Role::attention_output},
    {"attention.dense", Role::attention_output},
    {"self_attention.dense", Role::attention_output},
    {"self_attn.dense", Role::attention_output},
    {"attention.output.dense", Role::attention_output},
    {"o_proj", Role::attention_output},
    {"out_proj", Role::attention_output},
    {"v_proj", Role::value},
    {"self.value", Role::value},
    {"k_proj", Role::key},
    {"self.key", Role::key},
    {"qkv_proj", Role::query_key_value},
    {"query_key_value", Role::query_key_value},
    {"c_attn", Role::query_key_value},
    {"Wqkv", Role::query_key_value},
    {"down_proj", Role::down},
    {"w2", Role::down},
    {"fc2", Role::down},
    {"dense_4h_to_h", Role::down},
    {"mlp.c_proj", Role::down},
    {"output.dense", Role::down},
    {"lm_head", Role::head},
    {"embed_out", Role::head},
};

bool ends_with_parts(std::string_view name, std::string_view end) {
  return name.ends_with(end) &&
         (name.size() == end.size() || name[name.size() - end.size() - 1] == '.');
}

std::optional<int64_t> number_of(std::string_view part) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
  if (error != std::errc() || end != part.data() + part.size()) return std::nullopt;
  return number;
}

// The first part of a name, from `begin` on, that is a number.
std::optional<int64_t> first_number(std::string_view name, size_t begin) {
  while (begin < name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    if (const auto number = number_of(name.substr(begin, end - begin))) return number;
    begin = end + 1;
  }
  return std::nullopt;
}

}  // namespace

Role role_of(const LayerInfo& layer) {
  if (layer.type == "Embedding") return Role::embedding;
  for (const auto& [end, role] : kRoles)
    if (ends_with_parts(layer.name, end)) return role;
  return Role::other;
}

int64_t block_of(const std::string& name) { return first_number(name, 0).value_or(-1); }

int64_t experts_of(const LayerInfo& layer) {
  if (layer.matrices > 1) return layer.matrices;
  const size_t found = layer.name.find("experts.");
  const auto number = found == std::string::npos ? std::nullopt : first_number(layer.name, found);
  return number ? *number + 1 : 0;
}

}  // namespace qat
