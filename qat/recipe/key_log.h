#pragma once

#include <string>
#include <vector>

#include "qat/recipe/keys.h"

namespace qat {

// What readers ask for while they read. A key that is asked for several times, in different forms,
// has all of them.
class KeyLog {
 public:
  void add(const RecipeKey& asked);
  const std::vector<RecipeKey>& keys() const { return keys_; }

 private:
  std::vector<RecipeKey> keys_;
};

// Logs what the readers ask for in the recipe `text`, whose faults do not count.
void log_keys(const std::string& text, KeyLog* log);

// What a key means, in words for users; empty for one that has none.
std::string meaning_of(const std::string& path);

// The keys that have a meaning.
std::vector<std::string> explained_keys();

}  // namespace qat
