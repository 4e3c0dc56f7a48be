#include "qat/recipe/recipe.h"

#include <algorithm>
#include <cmath>

#include "qat/recipe/run_recipe.h"

namespace qat {
namespace {

std::string where(const std::string& file, const Place& place) {
  if (!place.setting.empty()) return place.setting;
  return file + ":" + std::to_string(place.line) + ":" + std::to_string(place.column);
}

std::string message_of(const std::string& file, std::vector<Problem>& problems) {
  std::stable_sort(problems.begin(), problems.end(), [](const Problem& a, const Problem& b) {
    return std::pair(a.place.line, a.place.column) < std::pair(b.place.line, b.place.column);
  });
  std::string message;
  for (const auto& [place, text] : problems)
    message += (message.empty() ? "" : "\n") + where(file, place) + ": " + text;
  return message;
}

}  // namespace

RecipeError::RecipeError(const std::string& file, std::vector<Problem> problems)
    : ErrorAs(message_of(file, problems)), problems_(std::move(problems)) {}

int64_t Bound::step_of(int64_t total_steps) const {
  return is_percent ? std::llround(value / 100.0 * static_cast<double>(total_steps))
                    : static_cast<int64_t>(value);
}

Recipe load_recipe(const std::string& path) { return load_run_recipe(path).core(); }

Recipe parse_recipe(const std::string& text, const std::string& file) {
  return parse_run_recipe(text, file).core();
}

}  // namespace qat
