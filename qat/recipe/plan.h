#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/recipe.h"

namespace qat {

// A weight as the planner sees it: a matrix, or several of one shape (experts), with a row for each
// output (of a convolution, whose columns are those of a patch) or for each entry of an embedding.
struct QAT_API LayerInfo {
  std::string name;
  std::string type;  // Linear, Conv2d, Embedding and so on: the class
  int64_t in_features = 0;
  int64_t out_features = 0;
  // An output head, a router, an embedding or a tied weight: matched only by its full name and, an
  // embedding, by type:Embedding.
  bool by_name_only = false;
  std::string why{};       // it is by_name_only, or not plannable
  bool plannable = true;   // else a weight that none of our layers covers
  bool multiplied = true;  // else looked up, or used element by element
  int64_t matrices = 1;
  bool in_block = false;               // of the repeated blocks, which match: blocks names
  std::vector<std::string> aliases{};  // further names of the same module
  bool counted = true;                 // else its weight is another layer's, where it counts

  int64_t elements() const { return counted ? matrices * in_features * out_features : 0; }
};

struct QAT_API LayerPlan {
  std::string name;
  int64_t in_features = 0;
  int64_t out_features = 0;
  std::optional<QuantSpec> weight;
  std::optional<QuantSpec> input;
  std::string type = "Linear";
  // The layers that engines fuse into one, this among them, whose weights train under one outer
  // scale: empty where they do not, or where there is none for the whole weight.
  std::vector<std::string> shares{};
  int64_t matrices = 1;
  bool multiplied = true;
  bool counted = true;
  std::string note{};  // of a mix: which of its types this layer has, and why

  int64_t elements() const { return counted ? matrices * in_features * out_features : 0; }
};

// A weight that stays in floating point.
struct QAT_API LeftAlone {
  std::string name;
  int64_t elements = 0;
  bool multiplied = true;
  std::string why;
};

// What happens to each layer of a model, and when. Computed from the recipe and the layers' names
// and shapes alone.
struct QAT_API Plan {
  std::vector<LayerPlan> layers;  // those with a weight or an input to quantize, in model order
  std::vector<Stage> stages;  // never empty; the last one ends the run at the layers' own widths
  int64_t untouched = 0;      // layers that stay in floating point
  std::optional<KvCacheSpec> kv_cache;  // of every attention layer
  std::vector<LeftAlone> left;          // matrices that stay in floating point, in model order
  int64_t parameters = 0;               // elements of all of the model, vectors as well

  // How many weights are quantized, and how many of all are multiplied.
  int64_t quantized(bool multiplied_alone = false) const;
  int64_t multiplied() const;
};

// Later rules win, tensor by tensor. Throws RecipeError for a rule that matches no layer or reaches
// weights that no layer covers without allow_float, a group or block that does not divide a layer
// (named), a mix whose blocks do not, inputs that a layer of its type cannot have quantized so, and a schedule that does not
// end at a layer's width. `parameters` counts those of the whole model; at least `layers` has.
QAT_API Plan make_plan(const Recipe& recipe, const std::vector<LayerInfo>& layers,
                       int64_t parameters = 0);

// The same plan with every weight at `bits`, range minmax, inputs as they are, and no schedule:
// plain rounding, for comparison.
QAT_API Plan naive_plan(const Plan& plan, int bits);

// The same plan with the weights of the named layers at other widths.
QAT_API Plan with_widths(const Plan& plan, const std::map<std::string, int>& widths);

// The same layers in FP8 E4M3, a scale for each output channel, the inputs of linear layers with
// one for each token: what hardware that multiplies FP8 runs.
QAT_API Plan float8_plan(const Plan& plan);

// True if `match` (a glob, "re:<regex>", "type:<class>" or "blocks") names the layer. Throws InvalidArgument
// for an invalid regular expression.
QAT_API bool matches(const std::string& match, const LayerInfo& layer);

// A table for people: one line a layer, what is left alone and why, then one line a stage.
QAT_API std::string to_text(const Plan& plan);

}  // namespace qat
