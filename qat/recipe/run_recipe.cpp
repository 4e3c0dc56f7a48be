#include "qat/recipe/run_recipe.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "qat/names.h"
#include "qat/recipe/distill_reader.h"
#include "qat/recipe/initialize_reader.h"
#include "qat/recipe/rule_reader.h"
#include "qat/recipe/settings.h"
#include "qat/recipe/spec_reader.h"
#include "qat/recipe/train_reader.h"

namespace qat {
namespace {

// The formats of qat/checkpoint/, which reads recipes and so is not read from here, and after them
// those that Python alone writes.
const std::vector<std::string> kFormats{"compressed-tensors",
                                        "compressed-tensors-0.18",
                                        "gptq",
                                        "gptq_v2",
                                        "awq",
                                        "gguf",
                                        "mlx",
                                        "modelopt",
                                        "onnx",
                                        "safetensors",
                                        "mxfp4",
                                        "dense"};

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
  model.kind = section.one_of("kind", model.kind,
                              {"causal_lm", "classifier", "sentence_encoder", "seq2seq"});
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

DataSource read_source(YamlSection section) {
  DataSource source;
  section.require("path");
  source.path = section.text("path", "");
  if (source.path.empty()) section.reject("path", "must name data");
  source.subset = section.text("subset", source.subset);
  source.split = section.text("split", source.split);
  source.column = section.text("column", source.column);
  source.weight = section.number("weight", source.weight, 1e-6, 1e6);
  section.finish();
  return source;
}

// A name, one place with what is wanted of it, or several such places.
void read_sources(YamlSection& section, DataSection& data) {
  const YAML::Node train = section.child("train");
  if (train.IsDefined() && train.IsMap()) {
    data.sources.push_back(read_source(section.section("train")));
  } else if (train.IsDefined() && train.IsSequence()) {
    for (YamlSection& source : section.sections("train"))
      data.sources.push_back(read_source(source));
    if (data.sources.empty()) section.reject("train", "must name at least one source");
  } else {
    data.train = section.text("train", "");
  }
}

DataSection read_data(YamlSection section) {
  DataSection data;
  read_sources(section, data);
  data.loss_on = section.one_of("loss_on", data.loss_on, {"answers", "all"});
  data.packing = section.boolean("packing", data.packing);
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

EvaluateSection read_evaluate(YamlSection section, const std::string& kind) {
  const bool encodes = kind == "sentence_encoder";
  EvaluateSection evaluate;
  section.takes("compare", "words", integer_dtypes());
  for (const YAML::Node& node : section.list("compare"))
    evaluate.compare.push_back(parse_bits(section, node, "compare"));
  YamlSection accept = section.section("accept");
  evaluate.accept_kl = accept.given_number("kl", 0.0, 1e6);
  evaluate.accept_task_drop = accept.given_number("task_drop", -1.0, 1.0);
  evaluate.accept_perplexity_ratio = accept.given_number("perplexity_ratio", 0.0, 1e6);
  evaluate.accept_cosine = accept.given_number("cosine", -1.0, 1.0);
  if (evaluate.accept_cosine && !encodes)
    accept.reject("cosine", "must not be given unless model.kind is sentence_encoder");
  if (evaluate.accept_perplexity_ratio && encodes)
    accept.reject("perplexity_ratio", "must not be given for a sentence_encoder, which has none");
  evaluate.sensitivity = section.boolean("sensitivity", evaluate.sensitivity);
  evaluate.task = section.text("task", "");
  // Kinds with a task of their own, on their held-out data.
  const bool has_own = kind == "classifier" || kind == "seq2seq";
  if (evaluate.accept_task_drop && evaluate.task.empty() && !has_own)
    accept.reject("task_drop", "must not be given without evaluate.task");
  accept.finish();
  section.finish();
  return evaluate;
}

// auto, cpu, cuda or cuda:N.
std::string read_device(YamlSection& section) {
  const std::string device = section.text("device", "auto");
  const std::string index = device.starts_with("cuda:") ? device.substr(5) : "";
  const bool is_index = !index.empty() && index.size() <= 3 &&
                        index.find_first_not_of("0123456789") == std::string::npos;
  if (device != "auto" && device != "cpu" && device != "cuda" && !is_index)
    section.reject("device", "must be auto, cpu, cuda or cuda:N");
  return device;
}

struct Engine {
  std::string name;
  bool writes_text;                  // it serves language models, or other kinds
  std::vector<std::string> formats;  // that it loads; the first is written where none is listed
};

// Transformers reads most formats, and says of others that it does not.
const std::vector<Engine>& known_engines() {
  static const std::vector<Engine> kEngines{{"transformers", true, {}},
                                            {"vllm", true, {"compressed-tensors", "gptq", "awq"}},
                                            {"llama.cpp", true, {"gguf"}},
                                            {"mlx", true, {"mlx"}},
                                            {"openvino", true, {"gguf"}},
                                            {"onnxruntime-genai", true, {"gptq", "awq"}},
                                            {"executorch", true, {"safetensors"}},
                                            {"transformers", false, {}},
                                            {"onnxruntime", false, {"onnx"}}};
  return kEngines;
}

// The engine that the export is for, and the formats that are written.
void read_exports(YamlSection& section, RunRecipe& recipe) {
  const bool writes_text = recipe.model.kind == "causal_lm";
  std::vector<std::string> names, loaded;
  for (const Engine& engine : known_engines())
    if (engine.writes_text == writes_text) names.push_back(engine.name);
  if (section.has("engine")) recipe.engine = section.one_of("engine", "transformers", names);
  for (const Engine& engine : known_engines())
    if (engine.writes_text == writes_text && engine.name == recipe.engine) loaded = engine.formats;
  const std::string fitting = loaded.empty() ? "compressed-tensors" : loaded.front();
  recipe.exports = section.words("export", {fitting}, kFormats);
  if (section.has("export") && !section.child("export").IsSequence()) return;  // which is said
  if (recipe.exports.empty()) section.reject("export", "must list at least one format");
  const auto is_loaded = [&](const std::string& format) {
    return std::find(loaded.begin(), loaded.end(), format) != loaded.end();
  };
  if (!loaded.empty() && std::none_of(recipe.exports.begin(), recipe.exports.end(), is_loaded))
    section.reject("export", "must list " + detail::join(loaded, " or ") +
                                 ", which is what engine: " + recipe.engine + " loads");
}

// What mode auto decides by.
void read_decision(YamlSection& section, RunRecipe& recipe) {
  const bool decides = recipe.mode == "auto";
  if (section.has("size") && !decides)
    section.reject("size", "must not be given unless mode is auto");
  YamlSection size = section.section("size");
  recipe.size_bits_per_weight =
      size.number("bits_per_weight", recipe.size_bits_per_weight, 2.0, 32.0);
  size.finish();
  const EvaluateSection& limits = recipe.evaluate;
  if (decides && !limits.accept_kl && !limits.accept_perplexity_ratio && !limits.accept_task_drop &&
      !limits.accept_cosine)
    section.reject("mode", "must be recipe unless evaluate.accept has limits");
}

RunRecipe read_recipe(YamlSection& section) {
  RunRecipe recipe;
  section.require("version");
  section.given_integer("version", 1, 1);
  if (!section.has("version")) section.reject("version", "must be 1");
  recipe.model = read_model(section.section("model"));
  recipe.data = read_data(section.section("data"));
  recipe.mode = section.one_of("mode", recipe.mode, {"recipe", "auto"});
  recipe.device = read_device(section);
  recipe.initialize = read_initialize(section.section("initialize"), recipe.mode == "auto");
  // Mode auto tries methods that choose scales.
  recipe.layers = read_layers(section, recipe.initialize.keeps_scales() || recipe.mode == "auto");
  check_block_training(section.section("initialize").section("block_training"),
                       recipe.initialize.block_training, recipe.layers);
  if (section.has("kv_cache")) {
    YamlSection cache = section.section("kv_cache");
    recipe.kv_cache = read_kv_cache(cache);
    if (recipe.model.kind != "causal_lm")
      section.reject("kv_cache", "must not be given unless model.kind is causal_lm");
  }
  recipe.schedule = read_schedule(section);
  YamlSection train = section.section("train");
  recipe.train = read_train(train);
  check_train(train, recipe);
  recipe.distill = read_distill(section.section("distill"), recipe.model.kind);
  recipe.evaluate = read_evaluate(section.section("evaluate"), recipe.model.kind);
  read_decision(section, recipe);
  read_exports(section, recipe);
  section.finish();
  return recipe;
}

}  // namespace

void log_keys(const std::string& text, KeyLog* log) {
  std::vector<Problem> problems;
  YamlSection section(YAML::Load(text), "", &problems, log);
  read_recipe(section);
}

RunRecipe parse_run_recipe(const std::string& text, const std::string& file,
                           const std::vector<std::string>& settings) {
  YAML::Node root;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1)
      throw RecipeError(file, {{place_of(documents[1].Mark()),
                                "a recipe must be one document, but another follows"}});
    if (!documents.empty()) root = documents[0];
  } catch (const YAML::ParserException& error) {
    throw RecipeError(file, {{place_of(error.mark), "the file must be YAML, but " + error.msg}});
  }
  if (!root.IsDefined() || root.IsNull())
    throw RecipeError(file, {{{1, 1}, "a recipe must be a map of keys, but is empty"}});
  std::vector<Problem> problems;
  const Settings set(settings, text);
  if (root.IsMap()) set.apply(root, &problems);
  YamlSection section(root, "", &problems);
  RunRecipe recipe = root.IsMap() ? read_recipe(section) : RunRecipe();
  for (Problem& problem : problems) set.settle(problem.place);
  if (!problems.empty()) throw RecipeError(file, problems);
  for (size_t i = 0; i < recipe.layers.size(); ++i)
    set.settle_entry(recipe.layers[i].place, file, "layers", i);
  for (size_t i = 0; i < recipe.schedule.size(); ++i)
    set.settle_entry(recipe.schedule[i].place, file, "schedule", i);
  recipe.file = file;
  recipe.text = settings.empty() ? text : set.text_of(root, file);
  return recipe;
}

RunRecipe load_run_recipe(const std::string& path, const std::vector<std::string>& settings) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf()))
    throw RecipeError(path, {{{1, 1}, "the recipe must be a readable file that is not empty"}});
  return parse_run_recipe(text.str(), path, settings);
}

}  // namespace qat
