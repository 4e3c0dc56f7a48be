#pragma once

#include <yaml-cpp/yaml.h>

#include <string>
#include <vector>

#include "qat/recipe/recipe.h"

namespace qat {

// Settings such as "train.steps=300" and "layers.0.weight.dtype=int3", which a recipe has in place
// of its own: KEY=VALUE, the value in YAML, none to take the key out, later ones over earlier ones.
// Their places are lines after those of the recipe, until `settle` turns them into words.
class Settings {
 public:
  Settings(std::vector<std::string> settings, const std::string& recipe_text);

  // Into the tree of the recipe, which must be a map.
  void apply(YAML::Node& root, std::vector<Problem>* problems) const;
  // A place in a setting: says which.
  void settle(Place& place) const;
  // The place of an entry of a list, such as of layers[0]: says as well which settings are in it.
  void settle_entry(Place& place, const std::string& file, const std::string& list,
                    size_t index) const;
  // The recipe as it is now, for the folder of a run.
  std::string text_of(const YAML::Node& root, const std::string& file) const;

 private:
  std::vector<std::string> settings_;
  std::vector<int> begins_;  // the line of each one's value, from 0
};

}  // namespace qat
