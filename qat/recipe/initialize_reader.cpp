#include "qat/recipe/initialize_reader.h"

#include <algorithm>
#include <string>

#include "qat/recipe/rule_reader.h"

namespace qat {
namespace {

bool contains(const Initialize& settings, Transform transform) {
  const auto& transforms = settings.transforms;
  return std::find(transforms.begin(), transforms.end(), transform) != transforms.end();
}

BlockTraining read_block_training(YamlSection section) {
  BlockTraining training;
  training.steps = section.integer("steps", training.steps, 0, 1'000'000);
  training.batch_size = section.integer("batch_size", training.batch_size, 1, 1'000'000);
  training.learning_rate = section.number("learning_rate", training.learning_rate, 0.0, 1.0);
  training.scale_learning_rate =
      section.number("scale_learning_rate", training.scale_learning_rate, 0.0, 1.0);
  training.rounding = section.one_of("rounding", training.rounding, block_roundings());
  section.finish();
  return training;
}

// Settings that the method does not read would seem to hold. Given at their defaults they claim nothing.
void check_initialize(YamlSection& section, const Initialize& given, bool tries_methods) {
  const Initialize usual;
  const auto refuse = [](YamlSection& in, const char* key, bool is_usual, const char* unless) {
    if (!is_usual) in.reject(key, std::string("must be left out unless ") + unless);
  };
  if (given.rounding != Rounding::gptq && !tries_methods) {
    const char* unless = "method rounds by gptq";
    refuse(section, "damping", given.damping == usual.damping, unless);
    refuse(section, "block_size", given.block_size == usual.block_size, unless);
    refuse(section, "order", given.order == usual.order, unless);
    refuse(section, "scale_search", given.scale_search == usual.scale_search, unless);
    refuse(section, "correction", given.correction == usual.correction, unless);
    refuse(section, "sweeps", given.sweeps == usual.sweeps, unless);
  }
  if (!contains(given, Transform::smoothquant))
    refuse(section, "smoothing", given.smoothing == usual.smoothing, "method has smoothquant+");
  if (!given.needs_data() && !tries_methods)
    refuse(section, "sequential", given.sequential == usual.sequential,
           "method has gptq, awq or smoothquant");
  if (given.block_training.steps > 0) return;
  YamlSection blocks = section.section("block_training");
  const BlockTraining &own = given.block_training, &none = usual.block_training;
  const char* unless = "steps is above 0";
  refuse(blocks, "batch_size", own.batch_size == none.batch_size, unless);
  refuse(blocks, "learning_rate", own.learning_rate == none.learning_rate, unless);
  refuse(blocks, "scale_learning_rate", own.scale_learning_rate == none.scale_learning_rate,
         unless);
  refuse(blocks, "rounding", own.rounding == none.rounding, unless);
}

}  // namespace

Initialize read_initialize(YamlSection section, bool tries_methods) {
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
  initialize.objective = section.one_of("objective", initialize.objective, objectives());
  if (initialize.objective == Objective::model && !initialize.weighs_outputs())
    section.reject("objective", "must be auto or layer unless method is gptq or hadamard+gptq");
  initialize.smoothing = section.number("smoothing", initialize.smoothing, 0.0, 1.0);
  initialize.rotation_size = section.integer("rotation_size", initialize.rotation_size, 0, 1 << 20);
  if (section.has("rotation_size") && !contains(initialize, Transform::hadamard))
    section.reject("rotation_size", "must not be given unless method begins with hadamard+");
  initialize.sequential = section.boolean("sequential", initialize.sequential);
  initialize.block_training = read_block_training(section.section("block_training"));
  check_initialize(section, initialize, tries_methods);
  section.finish();
  return initialize;
}

void check_block_training(YamlSection section, const BlockTraining& blocks,
                          const std::vector<Rule>& layers) {
  const bool moves_scales = std::any_of(layers.begin(), layers.end(),
                                        [](const Rule& rule) { return is_learned(rule.weight); });
  if (blocks.steps > 0 && !moves_scales &&
      blocks.scale_learning_rate != BlockTraining().scale_learning_rate)
    section.reject("scale_learning_rate", "must be left out unless a weight has scale: learned");
}

}  // namespace qat
