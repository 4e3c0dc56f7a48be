#include "qat/recipe/settings.h"

#include <algorithm>
#include <map>
#include <utility>

#include "qat/recipe/numbers.h"
#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

constexpr const char* kShared = " must not be shared by an anchor (&) to be set, but is";

int lines_of(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n')) + 1;
}

// "layers[0].weight" and "layers.0.weight" are the same; empty for what is no key.
std::vector<std::string> parts_of(const std::string& key) {
  std::vector<std::string> parts{""};
  for (const char c : key) {
    if (c == '.' || c == '[')
      parts.emplace_back();
    else if (c != ']')
      parts.back() += c;
  }
  const bool are_words = std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
    return !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) {
      return std::isalnum(c) || c == '_';
    });
  });
  return are_words ? parts : std::vector<std::string>{};
}

// How often `node` stands in the tree below `root`: more than once by an anchor of YAML alone.
int uses(const YAML::Node& root, const YAML::Node& node) {
  int found = root.is(node) ? 1 : 0;
  if (root.IsMap())
    for (const auto& entry : root) found += uses(entry.second, node);
  else if (root.IsSequence())
    for (const auto& entry : root) found += uses(entry, node);
  return found;
}

// One setting at work.
class Setting {
 public:
  Setting(std::string key, std::string value, int line, std::vector<Problem>* problems)
      : parts_(parts_of(key)),
        key_(std::move(key)),
        value_(std::move(value)),
        line_(line),
        problems_(problems) {}

  void apply(YAML::Node& root) {
    if (parts_.empty()) return reject("must be KEY=VALUE, such as train.steps=300, but is " + key_);
    YAML::Node node = root;
    for (size_t depth = 0; depth < parts_.size(); ++depth) {
      const bool is_last = depth + 1 == parts_.size();
      if (uses(root, node) > 1) return reject(path(depth) + kShared);
      if (node.IsSequence()) {
        const auto index = parse_number<size_t>(parts_[depth]);
        if (!index || *index > node.size() || (*index == node.size() && !is_last))
          return reject(path(depth) + " has the entries 0 to " + std::to_string(node.size() - 1) +
                        ", but is asked for " + parts_[depth]);
        if (is_last && is_shared(root, node, *index)) return;
        if (is_last) return set_entry(node, *index);
        node.reset(node[*index]);
      } else if (!node.IsMap()) {
        return reject(path(depth) + " must be a map of keys, but is " + text_of(node));
      } else if (is_last || !holds(node, parts_[depth])) {
        if (!is_shared(root, node, parts_[depth])) set_key(node, depth);
        return;
      } else {
        node.reset(node[parts_[depth]]);
      }
    }
  }

 private:
  // Whether what is to be replaced stands elsewhere as well, which would change with it.
  template <typename Key>
  bool is_shared(const YAML::Node& root, const YAML::Node& parent, const Key& key) {
    const YAML::Node child = parent[key];
    const bool shared = child.IsDefined() && uses(root, child) > 1;
    if (shared) reject(path(parts_.size()) + kShared);
    return shared;
  }

  // Whether there is a map or list, or a scalar that can not be one, under `key`.
  static bool holds(const YAML::Node& map, const std::string& key) {
    const YAML::Node child = map[key];
    return child.IsDefined() && !child.IsNull();
  }

  void set_entry(YAML::Node& list, size_t index) {
    if (value_.empty()) return reject(path(parts_.size()) + " must be given a value, but is not");
    if (index == list.size())
      list.push_back(load(value_));
    else
      list[index] = load(value_);
  }

  // `parts_[depth]` of `map`, and the maps below it that the path has.
  void set_key(YAML::Node& map, size_t depth) {
    const std::string& key = parts_[depth];
    const bool is_last = depth + 1 == parts_.size();
    if (value_.empty()) {
      if (!is_last || !map.remove(key))
        reject(path(parts_.size()) + " must be in the recipe to be taken out, but is not");
      return;
    }
    const YAML::Node value = load(value_);
    if (is_last && std::as_const(map)[key].IsDefined()) {
      map[key] = value;
      return;
    }
    std::string open, close;
    for (size_t i = depth; i < parts_.size(); ++i) open += "{" + parts_[i] + ": ", close += "}";
    YAML::Node added = load(open + "~" + close);
    YAML::Node inner = added;
    for (size_t i = depth; i + 1 < parts_.size(); ++i) inner.reset(inner[parts_[i]]);
    inner[parts_.back()] = value;
    map.remove(key);  // one that is empty
    for (const auto& entry : added) map.force_insert(entry.first, entry.second);
  }

  // As a document whose first line is that of the setting.
  YAML::Node load(const std::string& text) const {
    return YAML::Load(std::string(static_cast<size_t>(line_), '\n') + text);
  }

  void reject(const std::string& text) { problems_->push_back({{line_ + 1, 1}, text}); }

  // The first parts of the key, as messages have them.
  std::string path(size_t parts) const {
    std::string text;
    for (size_t i = 0; i < parts; ++i) {
      const bool is_index = parse_number<size_t>(parts_[i]).has_value();
      text += is_index ? "[" + parts_[i] + "]" : (text.empty() ? "" : ".") + parts_[i];
    }
    return text.empty() ? "a recipe" : text;
  }

  std::vector<std::string> parts_;
  std::string key_, value_;
  int line_;
  std::vector<Problem>* problems_;
};

}  // namespace

Settings::Settings(std::vector<std::string> settings, const std::string& recipe_text)
    : settings_(std::move(settings)) {
  int line = lines_of(recipe_text);
  for (const std::string& setting : settings_) {
    begins_.push_back(line);
    line += lines_of(setting);
  }
}

void Settings::apply(YAML::Node& root, std::vector<Problem>* problems) const {
  std::map<std::vector<std::string>, std::string> set_by;
  for (size_t i = 0; i < settings_.size(); ++i) {
    const size_t equals = settings_[i].find('=');
    if (equals == std::string::npos) {
      problems->push_back({{begins_[i] + 1, 1}, "must be KEY=VALUE, such as train.steps=300"});
      continue;
    }
    const auto parts = parts_of(settings_[i].substr(0, equals));
    if (const auto [before, is_first] = set_by.try_emplace(parts, settings_[i]);
        !is_first && !parts.empty()) {
      problems->push_back(
          {{begins_[i] + 1, 1},
           "a key must be set once, but --set " + before->second + " sets it, too"});
      continue;
    }
    try {
      Setting(settings_[i].substr(0, equals), settings_[i].substr(equals + 1), begins_[i], problems)
          .apply(root);
    } catch (const YAML::ParserException& error) {
      problems->push_back({{begins_[i] + 1, 1}, "the value must be YAML, but " + error.msg});
    }
  }
}

void Settings::settle(Place& place) const {
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), place.line - 1);
  if (after != begins_.begin())
    place.setting = "--set " + settings_[static_cast<size_t>(after - begins_.begin()) - 1];
}

void Settings::settle_entry(Place& place, const std::string& file, const std::string& list,
                            size_t index) const {
  settle(place);
  std::string inside;
  for (const std::string& setting : settings_) {
    const auto parts = parts_of(setting.substr(0, setting.find('=')));
    if (parts.size() < 3 || parts[0] != list) continue;
    // "layers.weight.dtype" is of a recipe whose one rule is no list.
    const auto entry = parse_number<size_t>(parts[1]);
    if (entry.value_or(0) == index) inside += " with --set " + setting;
  }
  if (inside.empty()) return;
  if (place.setting.empty())
    place.setting = file + ":" + std::to_string(place.line) + ":" + std::to_string(place.column);
  place.setting += inside;
}

std::string Settings::text_of(const YAML::Node& root, const std::string& file) const {
  std::string text = "# " + file + " with";
  for (const std::string& setting : settings_) text += " --set " + setting;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text + "\n" + YAML::Dump(root) + "\n";
}

}  // namespace qat
