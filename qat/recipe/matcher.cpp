#include "qat/recipe/matcher.h"

#include <fnmatch.h>

#include <algorithm>

#include "qat/error.h"
#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

}  // namespace

Matcher::Matcher(const std::string& match) : match_(match) {
  if (!starts_with(match, "re:")) return;
  try {
    regex_.emplace(match.substr(3));
  } catch (const std::regex_error&) {
    throw InvalidArgument("match must be a regular expression after re:, but is " + match);
  }
}

bool Matcher::operator()(const LayerInfo& layer) const {
  if (!layer.by_name_only && starts_with(match_, "type:")) return layer.type == match_.substr(5);
  if (!layer.by_name_only && match_ == "blocks") return layer.in_block;
  if (layer.type == "Embedding" && match_ == "type:Embedding") return true;
  const auto matched = [&](const std::string& name) {
    return layer.by_name_only ? match_ == name : names(name);
  };
  return matched(layer.name) || std::any_of(layer.aliases.begin(), layer.aliases.end(), matched);
}

bool Matcher::names(const std::string& name) const {
  return regex_ ? search(name) : fnmatch(match_.c_str(), name.c_str(), 0) == 0;
}

bool Matcher::search(const std::string& name) const {
  try {
    return std::regex_search(name, *regex_);
  } catch (const std::regex_error&) {
    throw InvalidArgument("match must be a regular expression that can be searched for, but " +
                          match_ + " is too complex for " + name);
  }
}

bool matches(const std::string& match, const LayerInfo& layer) { return Matcher(match)(layer); }

std::string no_match(const Rule& rule, const std::vector<LayerInfo>& layers) {
  std::vector<std::string> names;
  for (const auto& layer : layers)
    if (layer.plannable) names.push_back(layer.name);
  const std::string said = "match must name a layer, but " + rule.match + " matches none of " +
                           std::to_string(names.size()) + " layers";
  const std::string first = names.empty() ? "" : " (the first is " + names.front() + ")";
  if (rule.match == "blocks") return said + ": none is in a list of blocks" + first;
  const std::string near = nearest(rule.match, names);
  return said + (near.empty() ? first : "; did you mean " + near + "?");
}

}  // namespace qat
