#include "qat/recipe/train_reader.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "qat/recipe/rule_reader.h"

namespace qat {
namespace {

LoraSection read_lora(YamlSection section) {
  LoraSection lora;
  lora.rank = section.integer("rank", lora.rank, 1, 65536);
  lora.alpha = section.number("alpha", lora.alpha, 0.0, 1e6);
  section.finish();
  return lora;
}

OscillationSection read_oscillation(YamlSection section) {
  OscillationSection oscillation;
  oscillation.method = section.one_of("method", oscillation.method, {"none", "dampen", "freeze"});
  oscillation.dampening = section.number("dampening", oscillation.dampening, 0.0, 1.0);
  oscillation.threshold = section.number("threshold", oscillation.threshold, 0.0, 1.0);
  const OscillationSection usual;  // given at their defaults, keys claim nothing
  if (oscillation.dampening != usual.dampening && oscillation.method != "dampen")
    section.reject("dampening", "must be left out unless method is dampen");
  if (oscillation.threshold != usual.threshold && oscillation.method != "freeze")
    section.reject("threshold", "must be left out unless method is freeze");
  section.finish();
  return oscillation;
}

// One by name, or a function of the user's that makes it.
bool is_optimizer(const std::string& name) {
  static const std::vector<std::string> kNames{"adamw", "adamw_8bit", "muon", "sgd"};
  const size_t colon = name.find(':');
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() ||
         (colon != std::string::npos && colon > 0 && colon + 1 < name.size());
}

// Options that look at whole weights, of which each process has a shard only under FSDP.
void check_strategy(YamlSection& section, const TrainSection& train) {
  if (train.strategy != "fsdp") {
    if (train.cpu_offload) section.reject("cpu_offload", "must be false unless strategy is fsdp");
    return;
  }
  if (train.monitor) section.reject("monitor", "must be false where strategy is fsdp");
  if (train.weight_cache != "auto" && train.weight_cache != "none")
    section.reject("weight_cache", "must be none where strategy is fsdp");
  if (train.oscillation.method != "none")
    section.reject("oscillation", "must have method none where strategy is fsdp");
}

bool has_learned_scale(const Rule& rule) { return is_learned(rule.weight); }

// With `parameters: scales` codes are constant: scales must be learned, and widths must not change.
void check_frozen_codes(YamlSection& train, const RunRecipe& recipe) {
  if (recipe.train.parameters != "scales") return;
  const bool learned =
      std::all_of(recipe.layers.begin(), recipe.layers.end(),
                  [](const Rule& rule) { return !rule.weight.spec || has_learned_scale(rule); });
  if (!learned)
    train.reject("parameters", "must be all unless every weight has a learned scale");
  else if (!recipe.schedule.empty())
    train.reject("parameters", "must be all where a schedule changes widths, and so codes");
}

// Whether its range goes on following the data until it is frozen; one that is learned does not.
bool is_observed(const Choice& choice) {
  return choice.spec && !choice.spec->dynamic && choice.spec->range == Range::minmax &&
         follows(choice.spec->observer.kind);
}

// Where scales are all that trains, what is of matrices moves nothing.
void check_scales_alone(YamlSection& train, const TrainSection& own) {
  const TrainSection usual;
  const char* rate =
      "must be left out where parameters is scales, whose rate is scale_learning_rate";
  if (own.weight_decay != usual.weight_decay)
    train.reject("weight_decay", "must be left out where parameters is scales, which never decay");
  if (own.learning_rate && own.optimizer != "sgd") train.reject("learning_rate", rate);
  if (own.relative_learning_rate != usual.relative_learning_rate)
    train.reject("relative_learning_rate", rate);
  if (own.optimizer == "muon" || own.optimizer == "adamw_8bit")
    train.reject("optimizer",
                 "must be adamw, sgd or module:function where parameters is scales, since it moves "
                 "matrices alone");
}

// Settings that nothing of the layers reads would seem to hold. Given at their defaults they claim
// nothing. Mode auto tries other types than those that the rules name, but ranges as they say.
void check_read(YamlSection& train, const RunRecipe& recipe) {
  const TrainSection usual, &own = recipe.train;
  const auto any = [&](bool (*holds)(const Choice&), Choice Rule::* tensor) {
    return std::any_of(recipe.layers.begin(), recipe.layers.end(),
                       [&](const Rule& rule) { return holds(rule.*tensor); });
  };
  if (own.scale_learning_rate != usual.scale_learning_rate && !any(is_learned, &Rule::weight) &&
      !any(is_learned, &Rule::input))
    train.reject("scale_learning_rate",
                 "must be left out unless a weight or an input has scale: learned");
  if (!(own.freeze_observers == usual.freeze_observers) && !any(is_observed, &Rule::input))
    train.reject("freeze_observers",
                 "must be left out unless an input's calibrated range follows the data, which "
                 "takes granularity tensor and observer minmax or moving_average");
  if (own.parameters == "scales") check_scales_alone(train, own);
}

}  // namespace

TrainSection read_train(YamlSection& section) {
  TrainSection train;
  train.steps = section.integer("steps", train.steps, 0, kMany);
  train.epochs = section.given_number("epochs", 1e-3, 1e6);
  if (train.epochs && section.has("steps"))
    section.reject("epochs", "must not be given beside steps");
  train.optimizer = section.text("optimizer", train.optimizer);
  if (!is_optimizer(train.optimizer))
    section.reject("optimizer", "must be adamw, adamw_8bit, muon, sgd or module:function");
  train.masters = section.one_of("masters", train.masters, {"float32", "model"});
  train.batch_size = section.integer("batch_size", train.batch_size, 1, kMany);
  train.sequence_length = section.integer("sequence_length", train.sequence_length, 8, 131072);
  train.gradient_accumulation =
      section.integer("gradient_accumulation", train.gradient_accumulation, 1, kMany);
  train.learning_rate = section.given_number("learning_rate", 0.0, 1.0);
  train.relative_learning_rate =
      section.number("relative_learning_rate", train.relative_learning_rate, 0.0, 1.0);
  if (train.learning_rate && section.has("relative_learning_rate"))
    section.reject("relative_learning_rate", "must not be given beside learning_rate");
  if (!train.learning_rate && train.optimizer == "sgd" && train.steps > 0)
    section.reject("learning_rate",
                   "must be given where optimizer is sgd, whose steps are as large as gradients");
  train.scale_learning_rate =
      section.number("scale_learning_rate", train.scale_learning_rate, 0.0, 1.0);
  train.weight_decay = section.number("weight_decay", train.weight_decay, 0.0, 1.0);
  train.gradient_clip = section.number("gradient_clip", train.gradient_clip, 0.0, 1e6);
  train.learning_rate_decay =
      section.one_of("learning_rate_decay", train.learning_rate_decay, {"cosine", "constant"});
  train.warmup = section.bound("warmup", train.warmup);
  train.freeze_observers = section.bound("freeze_observers", train.freeze_observers);
  train.checkpoint_every = section.integer("checkpoint_every", train.checkpoint_every, 1, kMany);
  train.seed = section.integer("seed", train.seed, 0, std::numeric_limits<int32_t>::max());
  train.parameters = section.one_of("parameters", train.parameters, {"all", "scales", "lora"});
  if (section.has("lora") && train.parameters != "lora")
    section.reject("lora", "must not be given unless parameters is lora");
  train.lora = read_lora(section.section("lora"));
  train.oscillation = read_oscillation(section.section("oscillation"));
  if (train.oscillation.method != "none" && train.parameters != "all")
    section.reject("oscillation", "must have method none unless parameters is all");
  train.gradient_checkpointing =
      section.boolean("gradient_checkpointing", train.gradient_checkpointing);
  train.compile = section.boolean("compile", train.compile);
  train.mixed_precision =
      section.one_of("mixed_precision", train.mixed_precision, {"none", "bfloat16"});
  train.non_finite = section.one_of("non_finite", train.non_finite, {"stop", "skip"});
  train.weight_cache =
      section.one_of("weight_cache", train.weight_cache, {"auto", "none", "codes", "weights"});
  train.validate_every = section.integer("validate_every", train.validate_every, 0, kMany);
  train.strategy = section.one_of("strategy", train.strategy, {"ddp", "fsdp"});
  train.cpu_offload = section.boolean("cpu_offload", train.cpu_offload);
  // It looks at whole weights, which no process has of a sharded model.
  train.monitor = section.boolean("monitor", train.strategy != "fsdp");
  train.tensorboard = section.boolean("tensorboard", train.tensorboard);
  train.control = section.boolean("control", train.control);
  check_strategy(section, train);
  section.finish();
  return train;
}

void check_train(YamlSection& train, const RunRecipe& recipe) {
  const bool in_float32 = recipe.model.dtype == "float32";
  if (recipe.train.control && recipe.model.kind == "sentence_encoder")
    train.reject("control", "must be false for a sentence_encoder");
  if (recipe.train.mixed_precision != "none" && !in_float32)
    train.reject("mixed_precision", "must be none unless model.dtype is float32");
  // Parameters that are sharded together have one dtype, and scales are learned in float32.
  if (recipe.train.strategy == "fsdp" && !in_float32 &&
      std::any_of(recipe.layers.begin(), recipe.layers.end(), has_learned_scale))
    train.reject("strategy",
                 "must be ddp unless model.dtype is float32 or no scale is learned (with "
                 "mixed_precision: bfloat16, float32 weights compute in it)");
  check_frozen_codes(train, recipe);
  check_read(train, recipe);
}

}  // namespace qat
