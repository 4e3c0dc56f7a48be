#pragma once

#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "qat/recipe/plan.h"

namespace qat {

// The layers that a rule's `match` names. A regular expression is compiled once. Errors of
// std::regex, some of which come only while it searches, are thrown as InvalidArgument.
class Matcher {
 public:
  explicit Matcher(const std::string& match);

  bool operator()(const LayerInfo& layer) const;

 private:
  bool names(const std::string& name) const;
  bool search(const std::string& name) const;

  std::string match_;
  std::optional<std::regex> regex_;
};

// That a rule's match names no layer that can be quantized, and the nearest that there is.
std::string no_match(const Rule& rule, const std::vector<LayerInfo>& layers);

}  // namespace qat
