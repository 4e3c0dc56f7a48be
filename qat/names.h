#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qat/error.h"
#include "qat/ops/api.h"

namespace qat {

namespace detail {
// "minmax, mse or learned".
inline std::string join(const std::vector<std::string>& words, const char* last = " or ") {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? last : ", ") + words[i];
  return text;
}
}  // namespace detail

// How recipes spell the values of an enumeration, in the order in which errors list them.
template <typename Enum>
class NameTable {
 public:
  // `what`: the key that has them, for errors.
  NameTable(const char* what, std::vector<std::pair<Enum, const char*>> names)
      : what_(what), names_(std::move(names)) {}

  const char* name_of(Enum value) const {
    for (const auto& [known, name] : names_)
      if (known == value) return name;
    return "unknown";
  }

  std::optional<Enum> find(const std::string& word) const {
    for (const auto& [value, name] : names_)
      if (word == name) return value;
    return std::nullopt;
  }

  // Throws InvalidArgument with the allowed names.
  Enum parse(const std::string& word) const {
    if (const auto value = find(word)) return *value;
    throw InvalidArgument(std::string(what_) + " must be " + detail::join(names()) + ", but is " +
                          word + ".");
  }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : names_) names.emplace_back(entry.second);
    return names;
  }

 private:
  const char* what_;
  std::vector<std::pair<Enum, const char*>> names_;
};

}  // namespace qat
