#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "qat/error.h"
#include "qat/ops/api.h"
#include "qat/recipe/initialize.h"
#include "qat/recipe/kv_cache_spec.h"
#include "qat/spec.h"

namespace qat {

// A place in a recipe; line and column count from 1. Or in a setting that was made beside it.
struct QAT_API Place {
  int line = 1;
  int column = 1;
  std::string setting{};  // "--set train.steps=300", which messages have in place of the file
};

struct QAT_API Problem {
  Problem(Place at, std::string sentence) : place(std::move(at)), text(std::move(sentence)) {}

  Place place;
  std::string text;  // "schedule[1].weight must be ..., but is ..."
};

// Every problem of a recipe, one "file:line:column: sentence" a line.
class QAT_API RecipeError : public ErrorAs<std::runtime_error> {
 public:
  RecipeError(const std::string& file, std::vector<Problem> problems);
  const std::vector<Problem>& problems() const { return problems_; }

 private:
  std::vector<Problem> problems_;
};

// A point of the run: a share of its steps, or a step.
struct QAT_API Bound {
  bool is_percent = true;
  double value = 100.0;

  int64_t step_of(int64_t total_steps) const;
  bool operator==(const Bound& other) const = default;
};

// The width of a tensor that is not rounded.
constexpr int kFloat = 0;

// A part of the run with widths of its own; none: that with which the layer is exported.
struct QAT_API Stage {
  Bound until;
  std::optional<int> weight_bits;
  std::optional<int> input_bits;
  Place place;
};

// What a rule says of one tensor of the layers it matches.
struct QAT_API Choice {
  bool given = false;
  std::optional<QuantSpec> spec;  // none: leave it in floating point
  std::string mix{};  // of types, one for each layer, where `spec` is that of most (mixes.h)
  // The key that gives groups or blocks, "layers[0].weight.group_size", where one does.
  std::string block_key{};
};

struct QAT_API Rule {
  std::string match;  // a glob on module names, "re:<regex>", "type:<class>" or "blocks"
  Choice weight;
  Choice input;
  bool allow_float = false;  // what it reaches and no layer covers may stay in floating point
  Place place;
};

// What a schedule has to know of the training: the length that the recipe gives it, and until when
// the ranges of inputs follow the data.
struct QAT_API Training {
  int64_t steps = 300;
  Bound freeze_observers{true, 80.0};
};

// What a recipe says about quantization. The rest of it is for `torchqat run`: run_recipe.h.
struct QAT_API Recipe {
  std::string file;
  std::string text;
  std::vector<Rule> layers;
  std::optional<KvCacheSpec> kv_cache;
  Initialize initialize;
  std::vector<Stage> schedule;
  Training train;
};

// Both throw RecipeError with every problem at once, those of the rest as well. `file` names the
// text in messages.
QAT_API Recipe load_recipe(const std::string& path);
QAT_API Recipe parse_recipe(const std::string& text, const std::string& file);

}  // namespace qat
