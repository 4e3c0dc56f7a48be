#include "qat/recipe/yaml_section.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <regex>

#include "qat/recipe/numbers.h"

namespace qat {
namespace {

RecipeKey numeric(const char* type, double least, double greatest) {
  return {.types = {type}, .least = least, .greatest = greatest};
}

std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return "[" + text + "]";
}

}  // namespace

Place place_of(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

std::string text_of(const YAML::Node& node) {
  if (!node.IsDefined() || node.IsNull()) return "empty";
  if (node.IsScalar()) return node.Scalar().empty() ? "empty" : node.Scalar();
  YAML::Emitter out;
  out.SetMapFormat(YAML::Flow);
  out.SetSeqFormat(YAML::Flow);
  out << node;
  return out.c_str();
}

std::optional<int64_t> integer_of(const YAML::Node& node) {
  return node.IsScalar() ? parse_number<int64_t>(node.Scalar()) : std::nullopt;
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  const auto distance = [&word](const std::string& other) {
    std::vector<size_t> row(other.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= other.size(); ++j) {
        const size_t above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] != other[j - 1])});
        diagonal = above;
      }
    }
    return row.back();
  };
  std::string best;
  size_t least = std::max<size_t>(2, word.size() / 2) + 1;
  for (const auto& candidate : candidates)
    if (const size_t d = distance(candidate); d < least) least = d, best = candidate;
  return best;
}

YamlSection::YamlSection(const YAML::Node& node, std::string path, std::vector<Problem>* problems,
                         KeyLog* log)
    : node_(node), path_(std::move(path)), problems_(problems), log_(log) {
  // An undefined node of yaml-cpp has IsDefined(); anything else of it throws.
  is_map_ = node_.IsDefined() && node_.IsMap();
  if (node_.IsDefined()) place_ = place_of(node_.Mark());
  if (node_.IsDefined() && !node_.IsNull() && !is_map_)
    file(node_,
         (path_.empty() ? "a recipe" : path_) + " must be a map of keys, but is " + text_of(node_));
}

YAML::Node YamlSection::child(const std::string& key) {
  known_.insert(key);
  return is_map_ ? node_[key] : YAML::Node(YAML::NodeType::Undefined);
}

bool YamlSection::has(const std::string& key) { return child(key).IsDefined(); }

YamlSection YamlSection::section(const std::string& key) {
  log(key, {.types = {"map"}});
  YamlSection section(child(key), path_of(key), problems_, log_);
  if (!has(key)) section.place_ = place_;
  return section;
}

std::vector<YAML::Node> YamlSection::list(const std::string& key) {
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return {};
  if (!node.IsSequence()) {
    reject(key, "must be a list");
    return {};
  }
  return {node.begin(), node.end()};
}

std::vector<YamlSection> YamlSection::sections(const std::string& key) {
  log(key, {.types = {"maps"}});
  std::vector<YamlSection> found;
  for (const YAML::Node& node : list(key))
    found.emplace_back(node, path_of(key) + "[" + std::to_string(found.size()) + "]", problems_,
                       log_);
  return found;
}

std::vector<std::string> YamlSection::words(const std::string& key,
                                            std::vector<std::string> fallback,
                                            const std::vector<std::string>& allowed) {
  log(key, {.types = {"words"}, .words = allowed, .fallbacks = {listed(fallback)}});
  if (!has(key)) return fallback;
  std::vector<std::string> found;
  for (const YAML::Node& entry : list(key)) {
    const std::string word = text_of(entry);
    if (std::find(allowed.begin(), allowed.end(), word) == allowed.end())
      file(entry, path_of(key) + " must list only " + detail::join(allowed) + ", but has " + word);
    else if (std::find(found.begin(), found.end(), word) != found.end())
      file(entry, path_of(key) + " must list " + word + " once, but has it again");
    found.push_back(word);
  }
  return found;
}

int64_t YamlSection::integer(const std::string& key, int64_t fallback, int64_t least,
                             int64_t greatest) {
  RecipeKey asked = numeric("integer", least, greatest);
  // What is out of bounds stands for none.
  if (fallback >= least && fallback <= greatest) asked.fallbacks = {std::to_string(fallback)};
  log(key, asked);
  return read(key, fallback, least, greatest);
}

double YamlSection::number(const std::string& key, double fallback, double least, double greatest) {
  RecipeKey asked = numeric("number", least, greatest);
  asked.fallbacks = {number_text(fallback)};
  log(key, asked);
  return read(key, fallback, least, greatest);
}

std::optional<int64_t> YamlSection::given_integer(const std::string& key, int64_t least,
                                                  int64_t greatest) {
  log(key, numeric("integer", least, greatest));
  if (!has(key)) return std::nullopt;
  return read(key, least, least, greatest);
}

std::optional<double> YamlSection::given_number(const std::string& key, double least,
                                                double greatest) {
  log(key, numeric("number", least, greatest));
  if (!has(key)) return std::nullopt;
  return read(key, least, least, greatest);
}

int64_t YamlSection::read(const std::string& key, int64_t fallback, int64_t least,
                          int64_t greatest) {
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  const auto value = integer_of(node);
  if (value && *value >= least && *value <= greatest) return *value;
  reject(key, "must be a whole number from " + std::to_string(least) + " to " +
                  std::to_string(greatest));
  return fallback;
}

double YamlSection::read(const std::string& key, double fallback, double least, double greatest) {
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  const auto value = node.IsScalar() ? parse_number<double>(node.Scalar()) : std::nullopt;
  if (value && *value >= least && *value <= greatest) return *value;
  reject(key, "must be a number from " + number_text(least) + " to " + number_text(greatest));
  return fallback;
}

bool YamlSection::boolean(const std::string& key, bool fallback) {
  log(key, {.types = {"boolean"}, .fallbacks = {fallback ? "true" : "false"}});
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  bool value = fallback;
  if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value))
    reject(key, "must be true or false");
  return value;
}

std::string YamlSection::text(const std::string& key, const std::string& fallback) {
  RecipeKey asked{.types = {"text"}};
  if (!fallback.empty()) asked.fallbacks = {fallback};
  log(key, asked);
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  if (node.IsScalar() && !node.Scalar().empty()) return node.Scalar();
  reject(key, "must be a text");
  return fallback;
}

std::string YamlSection::one_of(const std::string& key, const std::string& fallback,
                                const std::vector<std::string>& allowed) {
  log(key, {.types = {"word"}, .words = allowed, .fallbacks = {fallback}});
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  const std::string value = text_of(node);
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return value;
  reject(key, "must be " + detail::join(allowed));
  return fallback;
}

Bound YamlSection::bound(const std::string& key, Bound fallback) {
  log(key, {.types = {"bound"},
            .fallbacks = {number_text(fallback.value) + (fallback.is_percent ? "%" : "")}});
  const YAML::Node node = child(key);
  if (!node.IsDefined()) return fallback;
  const std::string rule = "must be a percentage from 0% to 100% or a step from 0 on";
  if (!node.IsScalar() || node.Scalar().empty()) {
    reject(key, rule);
    return fallback;
  }
  std::string text = node.Scalar();
  const bool is_percent = text.back() == '%';
  if (is_percent) text.pop_back();
  if (const auto value = parse_number<double>(text); value && *value >= 0.0) {
    const bool fits = is_percent ? *value <= 100.0 : *value == std::floor(*value) && *value < 1e15;
    if (fits) return {is_percent, *value};
  }
  reject(key, rule);
  return fallback;
}

void YamlSection::require(const std::string& key) { log(key, {.required = true}); }

void YamlSection::takes(const std::string& key, const char* type,
                        const std::vector<std::string>& words) {
  log(key, {.types = {type}, .words = words});
}

void YamlSection::log(const std::string& key, RecipeKey asked) {
  if (log_ == nullptr) return;
  static const std::regex index(R"(\[\d+\])");
  asked.path = std::regex_replace(path_of(key), index, "");
  log_->add(asked);
}

void YamlSection::reject(const std::string& key, const std::string& rule) {
  const YAML::Node node = child(key);
  problems_->push_back({node.IsDefined() ? place_of(node.Mark()) : place_,
                        path_of(key) + " " + rule + ", but is " + text_of(node)});
}

void YamlSection::file(const YAML::Node& at, const std::string& text) {
  problems_->push_back({place_of(at.Mark()), text});
}

void YamlSection::finish() {
  if (!is_map_) return;
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    const std::string key = text_of(entry.first);
    if (!seen.insert(key).second) {
      file(entry.first, path_of(key) + " is given twice");
    } else if (!known_.count(key)) {
      const std::string near = nearest(key, {known_.begin(), known_.end()});
      file(entry.first,
           path_of(key) + " is not a known key" +
               (near.empty() ? ", which are " + detail::join({known_.begin(), known_.end()})
                             : "; did you mean " + path_of(near) + "?"));
    }
  }
}

}  // namespace qat
