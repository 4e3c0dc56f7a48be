#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "qat/names.h"
#include "qat/recipe/key_log.h"
#include "qat/recipe/recipe.h"

namespace qat {

// The limit of counts that have no other.
constexpr int64_t kMany = 1'000'000'000;

Place place_of(const YAML::Mark& mark);

// Text of a scalar as the user wrote it, or of a map or list on one line.
std::string text_of(const YAML::Node& node);

// The value of a scalar that is a whole number, none for any other node.
std::optional<int64_t> integer_of(const YAML::Node& node);

// The candidate nearest to `word` by edit distance, or empty when none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

// One map of a recipe. Files every problem where it stands instead of stopping at the first, knows
// which keys no reader looked up, and logs how readers ask for them.
class YamlSection {
 public:
  // A `node` that is absent stands for an empty map; one that is not a map is a problem.
  YamlSection(const YAML::Node& node, std::string path, std::vector<Problem>* problems,
              KeyLog* log = nullptr);

  bool has(const std::string& key);
  YAML::Node child(const std::string& key);
  YamlSection section(const std::string& key);
  // The entries of a list, or the problem that it is none.
  std::vector<YAML::Node> list(const std::string& key);
  // The same for a list of maps, such as layers[0] and layers[1].
  std::vector<YamlSection> sections(const std::string& key);
  std::vector<std::string> words(const std::string& key, std::vector<std::string> fallback,
                                 const std::vector<std::string>& allowed);

  int64_t integer(const std::string& key, int64_t fallback, int64_t least, int64_t greatest);
  double number(const std::string& key, double fallback, double least, double greatest);
  // None where it is not given.
  std::optional<int64_t> given_integer(const std::string& key, int64_t least, int64_t greatest);
  std::optional<double> given_number(const std::string& key, double least, double greatest);
  bool boolean(const std::string& key, bool fallback);
  std::string text(const std::string& key, const std::string& fallback);
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& allowed);
  template <typename Enum>
  Enum one_of(const std::string& key, Enum fallback, const NameTable<Enum>& names) {
    return names.parse(one_of(key, names.name_of(fallback), names.names()));
  }
  Bound bound(const std::string& key, Bound fallback);
  // The key must be given; the caller says so where it is not.
  void require(const std::string& key);
  // For the log: `key` holds one of these words, or two sides. The caller reads it.
  void takes(const std::string& key, const char* type, const std::vector<std::string>& words);

  // Files "path.key RULE, but is VALUE".
  void reject(const std::string& key, const std::string& rule);
  void file(const YAML::Node& at, const std::string& text);

  // Reports unknown and duplicate keys. Call it last.
  void finish();

  Place place() const { return place_; }
  std::string path_of(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
  }

 private:
  int64_t read(const std::string& key, int64_t fallback, int64_t least, int64_t greatest);
  double read(const std::string& key, double fallback, double least, double greatest);
  void log(const std::string& key, RecipeKey asked);

  const YAML::Node node_;  // const, so that operator[] cannot insert
  std::string path_;
  std::vector<Problem>* problems_;
  KeyLog* log_;
  std::set<std::string> known_;  // keys that were looked up
  bool is_map_ = false;
  Place place_;  // of the map; of the one around it when it is absent
};

}  // namespace qat
