#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace qat {

// A text that is a number from its first character to its last, as YAML spells it: with a point,
// whatever the locale of the program writes. None for any other text, and for a number that
// `Number` cannot hold.
template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
  const char* first = text.data();
  const char* const last = first + text.size();
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') ++first;  // which from_chars leaves out
  Number value{};
  const auto [end, error] = std::from_chars(first, last, value);
  if (error != std::errc() || end != last) return std::nullopt;
  return value;
}

// The shortest text that is read back as `value`, in any locale.
inline std::string number_text(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

}  // namespace qat
