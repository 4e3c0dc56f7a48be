#include "qat/recipe/initialize.h"

#include <algorithm>
#include <sstream>

#include "qat/names.h"

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

}  // namespace

const char* name_of(Transform transform) { return kTransforms.name_of(transform); }
const char* name_of(Rounding rounding) { return kRoundings.name_of(rounding); }
const NameTable<Objective>& objectives() { return kObjectives; }
const char* name_of(Objective objective) { return kObjectives.name_of(objective); }
Objective parse_objective(const std::string& name) { return kObjectives.parse(name); }
const NameTable<BlockRounding>& block_roundings() { return kBlockRoundings; }
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

}  // namespace qat
