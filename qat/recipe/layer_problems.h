#pragma once

#include <array>
#include <string>
#include <vector>

#include "qat/recipe/coverage.h"
#include "qat/recipe/plan.h"

namespace qat {

// "a, b, c and 177 more".
std::string named(const std::vector<std::string>& names);

// What is wrong with layers that rules reach, told once for all of which one rule got the same wrong.
class LayerProblems {
 public:
  // A sentence of `before`, the layers' names and `after`.
  void add(const Place& place, const std::string& before, const LayerInfo& layer,
           const std::string& after);
  // That blocks of what `chosen` says of the layer's weight or input divide it.
  void check_divisible(const Chosen& chosen, const Choice& choice, const LayerInfo& layer);

  void append_to(std::vector<Problem>* problems) const;

 private:
  struct Sentence {
    Place place;
    std::string before, after;
    std::vector<std::string> names;
  };
  // Layers by the size that a block has to divide.
  struct Division {
    const Choice* choice;
    Place place;
    std::string side, of;
    int64_t block;
    // The greatest that divides all sizes, those that the block does divide too.
    int64_t common = 0;
    std::vector<std::pair<int64_t, std::vector<std::string>>> indivisible{};
  };

  void divide(const Chosen& chosen, const Choice& choice, const LayerInfo& layer,
              const std::string& side, int64_t block);
  static std::string text_of(const Division& division);

  std::vector<Sentence> sentences_;
  std::vector<Division> divisions_;
};

}  // namespace qat
