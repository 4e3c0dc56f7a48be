#include "qat/recipe/recipe.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "qat/checkpoint/formats/format.h"
#include "qat/recipe/spec_reader.h"
#include "qat/recipe/train_reader.h"
#include "qat/recipe/yaml_section.h"

namespace qat {
namespace {

std::string message_of(const std::string& file, std::vector<Problem>& problems) {
  std::stable_sort(problems.begin(), problems.end(), [](const Problem& a, const Problem& b) {
    return std::pair(a.place.line, a.place.column) < std::pair(b.place.line, b.place.column);
  });
  std::string message;
  for (const auto& [place, text] : problems)
    message += (message.empty() ? "" : "\n") + file + ":" + std::to_string(place.line) + ":" +
               std::to_string(place.column) + ": " + text;
  return message;
}

ScratchModel read_scratch(YamlSection section) {
  ScratchModel scratch;
  scratch.hidden_size = section.integer("hidden_size", scratch.hidden_size, 8, 65536);
  scratch.intermediate_size =
      section.integer("intermediate_size", scratch.intermediate_size, 8, 262144);
  scratch.layers = section.integer("layers", scratch.layers, 1, 1024);
  scratch.heads = section.integer("heads", scratch.heads, 1, 1024);
  scratch.kv_heads = section.integer("kv_heads", scratch.kv_heads, 1, 1024);
  scratch.vocabulary = section.integer("vocabulary", scratch.vocabulary, 300, 262144);
  scratch.steps = section.integer("steps", scratch.steps, 1, kMany);
  scratch.batch_size = section.integer("batch_size", scratch.batch_size, 1, kMany);
  scratch.sequence_length = section.integer("sequence_length", scratch.sequence_length, 8, 131072);
  scratch.learning_rate = section.number("learning_rate", scratch.learning_rate, 1e-8, 1.0);
  if (scratch.hidden_size % (2 * scratch.heads) != 0)
    section.reject("hidden_size",
                   "must be an even multiple of heads, " + std::to_string(scratch.heads));
  if (scratch.heads % scratch.kv_heads != 0)
    section.reject("kv_heads", "must divide heads, " + std::to_string(scratch.heads));
  section.finish();
  return scratch;
}

ModelSection read_model(YamlSection section) {
  ModelSection model;
  model.path = section.text("path", "");
  model.kind = section.one_of("kind", model.kind, {"causal_lm", "classifier", "sentence_encoder"});
  model.dtype = section.one_of("dtype", model.dtype, {"float32", "bfloat16", "float16"});
  if (section.has("scratch")) {
    model.scratch = read_scratch(section.section("scratch"));
    if (!model.path.empty()) section.reject("scratch", "must not stand beside path");
    if (model.kind != "causal_lm")
      section.reject("scratch", "must not be given unless kind is causal_lm");
  }
  section.finish();
  return model;
}

Samples read_samples(YamlSection& section) {
  Samples samples;
  samples.samples = section.integer("samples", samples.samples, 1, kMany);
  samples.sequence_length = section.integer("sequence_length", samples.sequence_length, 8, 131072);
  return samples;
}

DataSection read_data(YamlSection section) {
  DataSection data;
  data.train = section.text("train", "");
  YamlSection calibration = section.section("calibration");
  data.calibration = read_samples(calibration);
  calibration.finish();
  YamlSection evaluation = section.section("evaluation");
  data.evaluation_path = evaluation.text("path", "");
  data.evaluation = read_samples(evaluation);
  evaluation.finish();
  section.finish();
  return data;
}

Rule read_rule(YamlSection section, bool keeps_scales) {
  Rule rule;
  rule.place = section.place();
  rule.match = section.text("match", "");
  if (rule.match.empty() && !section.has("match"))
    section.reject("match", "must name layers by a glob, re:<regex> or type:<class>");
  rule.weight = read_choice(section, "weight", TensorRole::weight, keeps_scales);
  rule.input = read_choice(section, "input", TensorRole::input);
  if (!rule.weight.given && !rule.input.given) section.reject("weight", "must be given, or input");
  section.finish();
  return rule;
}

// Percentages grow and steps grow; the two kinds are compared once the number of steps is known.
bool grows(const Bound& before, const Bound& after) {
  return before.is_percent != after.is_percent || before.value < after.value;
}

std::vector<Stage> read_schedule(YamlSection& recipe, std::vector<Problem>* problems) {
  std::vector<Stage> stages;
  for (const YAML::Node& node : recipe.list("schedule")) {
    YamlSection section(node, "schedule[" + std::to_string(stages.size()) + "]", problems);
    Stage stage;
    stage.place = section.place();
    stage.until = section.bound("until", stage.until);
    stage.weight_bits = read_stage_bits(section, "weight");
    stage.input_bits = read_stage_bits(section, "input");
    if (!stages.empty() && !grows(stages.back().until, stage.until))
      section.reject("until", "must lie after the stage before it");
    section.finish();
    stages.push_back(stage);
  }
  return stages;
}

// An encoder's answers are embeddings, whose distance is trained on; others give probabilities.
DistillSection read_distill(YamlSection section, const std::string& kind) {
  const bool encodes = kind == "sentence_encoder";
  DistillSection distill;
  distill.loss = encodes ? "cosine" : distill.loss;
  distill.teacher = section.one_of("teacher", distill.teacher, {"original"});
  distill.loss = section.one_of("loss", distill.loss,
                                encodes ? std::vector<std::string>{"cosine"}
                                        : std::vector<std::string>{"forward_kl", "cross_entropy"});
  distill.temperature = section.number("temperature", distill.temperature, 0.01, 100.0);
  distill.weight = section.number("weight", distill.weight, 0.0, 1.0);
  section.finish();
  return distill;
}

EvaluateSection read_evaluate(YamlSection section, const std::string& kind) {
  const bool encodes = kind == "sentence_encoder";
  EvaluateSection evaluate;
  evaluate.metrics = section.words("metrics", evaluate.metrics, evaluate.metrics);
  for (const YAML::Node& node : section.list("compare"))
    evaluate.compare.push_back(parse_bits(section, node, "compare"));
  YamlSection accept = section.section("accept");
  if (accept.has("kl")) evaluate.accept_kl = accept.number("kl", 0.0, 0.0, 1e6);
  if (accept.has("task_drop"))
    evaluate.accept_task_drop = accept.number("task_drop", 0.0, -1.0, 1.0);
  if (accept.has("perplexity_ratio"))
    evaluate.accept_perplexity_ratio = accept.number("perplexity_ratio", 1.0, 0.0, 1e6);
  if (accept.has("cosine")) evaluate.accept_cosine = accept.number("cosine", 1.0, -1.0, 1.0);
  if (evaluate.accept_cosine && !encodes)
    accept.reject("cosine", "must not be given unless model.kind is sentence_encoder");
  if (evaluate.accept_perplexity_ratio && encodes)
    accept.reject("perplexity_ratio", "must not be given for a sentence_encoder, which has none");
  evaluate.sensitivity = section.boolean("sensitivity", evaluate.sensitivity);
  evaluate.task = section.text("task", "");
  // A classifier's own task is the accuracy on its held-out data.
  if (evaluate.accept_task_drop && evaluate.task.empty() && kind != "classifier")
    accept.reject("task_drop", "must not be given without evaluate.task");
  accept.finish();
  section.finish();
  return evaluate;
}

// What mode auto decides by, and the formats that are written.
void read_decision(YamlSection& section, Recipe& recipe) {
  const bool decides = recipe.mode == "auto";
  for (const auto* key : {"size", "engine"})
    if (section.has(key) && !decides) section.reject(key, "must not be given unless mode is auto");
  YamlSection size = section.section("size");
  recipe.size_bits_per_weight =
      size.number("bits_per_weight", recipe.size_bits_per_weight, 2.0, 32.0);
  size.finish();
  const EvaluateSection& limits = recipe.evaluate;
  if (decides && !limits.accept_kl && !limits.accept_perplexity_ratio && !limits.accept_task_drop &&
      !limits.accept_cosine)
    section.reject("mode", "must be recipe unless evaluate.accept has limits");
  const bool writes = recipe.model.kind == "causal_lm";
  if (section.has("engine"))
    recipe.engine =
        section.one_of("engine", "transformers",
                       writes ? std::vector<std::string>{"transformers", "vllm", "llama.cpp"}
                              : std::vector<std::string>{"transformers", "onnxruntime"});
  const char* fitting = recipe.engine == "llama.cpp"     ? "gguf"
                        : recipe.engine == "onnxruntime" ? "onnx"
                                                         : "compressed-tensors";
  recipe.exports = section.words("export", {fitting}, format_names());
}

Recipe read_recipe(YamlSection& section, std::vector<Problem>* problems) {
  Recipe recipe;
  recipe.version = section.integer("version", recipe.version, 1, 1);
  if (!section.has("version")) section.reject("version", "must be 1");
  recipe.model = read_model(section.section("model"));
  recipe.data = read_data(section.section("data"));
  recipe.mode = section.one_of("mode", recipe.mode, {"recipe", "auto"});
  YamlSection initialize = section.section("initialize");
  recipe.initialize = read_initialize(initialize);
  // Mode auto tries methods that choose scales.
  const bool keeps_scales = recipe.initialize.keeps_scales() || recipe.mode == "auto";
  for (const YAML::Node& node : section.list("layers"))
    recipe.layers.push_back(read_rule(
        YamlSection(node, "layers[" + std::to_string(recipe.layers.size()) + "]", problems),
        keeps_scales));
  if (recipe.layers.empty()) section.reject("layers", "must list at least one rule");
  if (section.has("kv_cache")) {
    YamlSection cache = section.section("kv_cache");
    recipe.kv_cache = read_kv_cache(cache);
    if (recipe.model.kind != "causal_lm")
      section.reject("kv_cache", "must not be given unless model.kind is causal_lm");
  }
  recipe.schedule = read_schedule(section, problems);
  YamlSection train = section.section("train");
  recipe.train = read_train(train);
  check_train(train, recipe);
  recipe.distill = read_distill(section.section("distill"), recipe.model.kind);
  recipe.evaluate = read_evaluate(section.section("evaluate"), recipe.model.kind);
  read_decision(section, recipe);
  section.finish();
  return recipe;
}

}  // namespace

RecipeError::RecipeError(const std::string& file, std::vector<Problem> problems)
    : ErrorAs(message_of(file, problems)), problems_(std::move(problems)) {}

int64_t Bound::step_of(int64_t total_steps) const {
  return is_percent ? std::llround(value / 100.0 * static_cast<double>(total_steps))
                    : static_cast<int64_t>(value);
}

Recipe parse_recipe(const std::string& text, const std::string& file) {
  std::vector<Problem> problems;
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::ParserException& error) {
    throw RecipeError(file, {{place_of(error.mark), "the file must be YAML, but " + error.msg}});
  }
  if (!root.IsDefined() || root.IsNull())
    throw RecipeError(file, {{{1, 1}, "a recipe must be a map of keys, but is empty"}});
  YamlSection section(root, "", &problems);
  if (!root.IsMap()) throw RecipeError(file, problems);
  Recipe recipe = read_recipe(section, &problems);
  if (!problems.empty()) throw RecipeError(file, problems);
  recipe.file = file;
  recipe.text = text;
  return recipe;
}

Recipe load_recipe(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf()))
    throw RecipeError(path, {{{1, 1}, "the recipe must be a readable file that is not empty"}});
  return parse_recipe(text.str(), path);
}

}  // namespace qat
