#include "qat/recipe/initialize.h"

#include <algorithm>
#include <sstream>

#include "qat/names.h"
#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

const NameTable<Transform> kTransforms("transform", {{Transform::hadamard, "hadamard"},
                                                     {Transform::smoothquant, "smoothquant"},
                                                     {Transform::awq, "awq"}});
const NameTable<Rounding> kRoundings("rounding", {{Rounding::rtn, "rtn"},
                                                  {Rounding::mse, "mse"},
                                                  {Rounding::clip, "clip"},
                                                  {Rounding::gptq, "gptq"}});
const NameTable<BlockRounding> kBlockRoundings("rounding", {{BlockRounding::free, "weights"},
                                                            {BlockRounding::half_step, "signed"}});

const NameTable<Objective> kObjectives("objective", {{Objective::automatic, "auto"},
                                                     {Objective::layer, "layer"},
                                                     {Objective::model, "model"}});

bool contains(const std::vector<Transform>& transforms, Transform transform) {
  return std::find(transforms.begin(), transforms.end(), transform) != transforms.end();
}

BlockTraining read_block_training(YamlSection section) {
  BlockTraining training;
  training.steps = section.integer("steps", training.steps, 0, 1'000'000);
  training.batch_size = section.integer("batch_size", training.batch_size, 1, 1'000'000);
  training.learning_rate = section.number("learning_rate", training.learning_rate, 0.0, 1.0);
  training.scale_learning_rate =
      section.number("scale_learning_rate", training.scale_learning_rate, 0.0, 1.0);
  training.rounding = section.one_of("rounding", training.rounding, kBlockRoundings);
  section.finish();
  return training;
}

}  // namespace

const char* name_of(Transform transform) { return kTransforms.name_of(transform); }
const char* name_of(Rounding rounding) { return kRoundings.name_of(rounding); }
const char* name_of(Objective objective) { return kObjectives.name_of(objective); }
Objective parse_objective(const std::string& name) { return kObjectives.parse(name); }
const char* name_of(BlockRounding rounding) { return kBlockRoundings.name_of(rounding); }
BlockRounding parse_block_rounding(const std::string& name) { return kBlockRoundings.parse(name); }

ScaleSearch Initialize::search() const {
  return rounding == Rounding::rtn ? ScaleSearch::minmax : ScaleSearch::mse;
}

bool Initialize::keeps_scales() const {
  return rounding == Rounding::gptq || rounding == Rounding::clip || block_training.steps > 0;
}

bool Initialize::weighs_outputs() const {
  if (objective == Objective::automatic && block_training.steps > 0) return false;
  return objective != Objective::layer && rounding == Rounding::gptq &&
         !contains(transforms, Transform::smoothquant) && !contains(transforms, Transform::awq);
}

bool Initialize::needs_data() const {
  return keeps_scales() || contains(transforms, Transform::smoothquant) ||
         contains(transforms, Transform::awq);
}

std::string parse_method(const std::string& method, Initialize* into) {
  static const std::string rule =
      "must be rtn, mse, gptq or awq, or one of them after hadamard+, smoothquant+ or awq+";
  std::vector<std::string> parts;
  std::istringstream in(method);
  for (std::string part; std::getline(in, part, '+');) parts.push_back(part);
  into->method = method;
  into->transforms.clear();
  std::optional<Rounding> rounding;
  for (const std::string& part : parts) {
    if (rounding) return rule;  // something after the rounding
    const auto transform = kTransforms.find(part);
    rounding = kRoundings.find(part);
    if (transform && !contains(into->transforms, *transform))
      into->transforms.push_back(*transform);
    else if (!rounding || rounding == Rounding::clip)  // which awq alone stands for
      return rule;
  }
  if (parts.empty() || method.back() == '+') return rule;
  into->rounding = rounding                                    ? *rounding
                   : into->transforms.back() == Transform::awq ? Rounding::clip
                                                               : Rounding::mse;
  return "";
}

Initialize read_initialize(YamlSection section) {
  Initialize initialize;
  const std::string rule = parse_method(section.text("method", initialize.method), &initialize);
  if (!rule.empty()) section.reject("method", rule);
  initialize.damping = section.number("damping", initialize.damping, 0.0, 10.0);
  initialize.block_size = section.integer("block_size", initialize.block_size, 1, 1 << 20);
  initialize.order = section.one_of("order", initialize.order, column_orders());
  initialize.scale_search =
      section.one_of("scale_search", initialize.scale_search, scale_searches());
  initialize.correction = section.number("correction", initialize.correction, 0.0, 1.0);
  initialize.sweeps = section.integer("sweeps", initialize.sweeps, 0, 1000);
  initialize.objective = section.one_of("objective", initialize.objective, kObjectives);
  if (initialize.objective == Objective::model && !initialize.weighs_outputs())
    section.reject("objective", "must be auto or layer unless method is gptq or hadamard+gptq");
  initialize.smoothing = section.number("smoothing", initialize.smoothing, 0.0, 1.0);
  initialize.rotation_size = section.integer("rotation_size", initialize.rotation_size, 0, 1 << 20);
  if (section.has("rotation_size") && !contains(initialize.transforms, Transform::hadamard))
    section.reject("rotation_size", "must not be given unless method begins with hadamard+");
  initialize.sequential = section.boolean("sequential", initialize.sequential);
  initialize.block_training = read_block_training(section.section("block_training"));
  section.finish();
  return initialize;
}

}  // namespace qat
