#include "qat/recipe/initialize.h"

#include <algorithm>
#include <sstream>

#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

const std::vector<std::string> kTransforms{"hadamard", "smoothquant", "awq"};
const std::vector<std::string> kRoundings{"rtn", "mse", "gptq"};

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

BlockTraining read_block_training(YamlSection section) {
  BlockTraining training;
  training.steps = section.integer("steps", training.steps, 0, 1'000'000);
  training.batch_size = section.integer("batch_size", training.batch_size, 1, 1'000'000);
  training.learning_rate = section.number("learning_rate", training.learning_rate, 0.0, 1.0);
  training.scale_learning_rate =
      section.number("scale_learning_rate", training.scale_learning_rate, 0.0, 1.0);
  training.rounding = section.one_of("rounding", training.rounding, {"weights", "signed"});
  section.finish();
  return training;
}

}  // namespace

bool Initialize::keeps_scales() const {
  return rounding == "gptq" || rounding == "clip" || block_training.steps > 0;
}

bool Initialize::needs_data() const {
  return keeps_scales() || contains(transforms, "smoothquant") || contains(transforms, "awq");
}

std::string parse_method(const std::string& method, Initialize* into) {
  static const std::string rule =
      "must be rtn, mse, gptq or awq, or one of them after hadamard+, smoothquant+ or awq+";
  std::vector<std::string> parts;
  std::istringstream in(method);
  for (std::string part; std::getline(in, part, '+');) parts.push_back(part);
  into->method = method;
  into->transforms.clear();
  into->rounding = "";
  for (const std::string& part : parts) {
    if (!into->rounding.empty()) return rule;  // something after the rounding
    if (contains(kRoundings, part))
      into->rounding = part;
    else if (contains(kTransforms, part) && !contains(into->transforms, part))
      into->transforms.push_back(part);
    else
      return rule;
  }
  if (parts.empty() || method.back() == '+') return rule;
  if (into->rounding.empty()) into->rounding = into->transforms.back() == "awq" ? "clip" : "mse";
  return "";
}

Initialize read_initialize(YamlSection section) {
  Initialize initialize;
  const std::string rule = parse_method(section.text("method", initialize.method), &initialize);
  if (!rule.empty()) section.reject("method", rule);
  initialize.damping = section.number("damping", initialize.damping, 0.0, 10.0);
  initialize.block_size = section.integer("block_size", initialize.block_size, 1, 1 << 20);
  initialize.order = section.one_of("order", initialize.order, {"plain", "group", "column"});
  initialize.scale_search =
      section.one_of("scale_search", initialize.scale_search, {"minmax", "mse"});
  initialize.correction = section.number("correction", initialize.correction, 0.0, 1.0);
  initialize.smoothing = section.number("smoothing", initialize.smoothing, 0.0, 1.0);
  initialize.sequential = section.boolean("sequential", initialize.sequential);
  initialize.block_training = read_block_training(section.section("block_training"));
  section.finish();
  return initialize;
}

}  // namespace qat
