#include "qat/recipe/run_recipe.h"

#include "python/bindings/module.h"
#include "qat/recipe/keys.h"

namespace qat::bindings {
namespace {

void def_model_and_data(py::module_& m) {
  py::class_<ScratchModel>(m, "ScratchModel")
      .def_readonly("hidden_size", &ScratchModel::hidden_size)
      .def_readonly("intermediate_size", &ScratchModel::intermediate_size)
      .def_readonly("layers", &ScratchModel::layers)
      .def_readonly("heads", &ScratchModel::heads)
      .def_readonly("kv_heads", &ScratchModel::kv_heads)
      .def_readonly("vocabulary", &ScratchModel::vocabulary)
      .def_readonly("steps", &ScratchModel::steps)
      .def_readonly("batch_size", &ScratchModel::batch_size)
      .def_readonly("sequence_length", &ScratchModel::sequence_length)
      .def_readonly("learning_rate", &ScratchModel::learning_rate);
  py::class_<ModelSection>(m, "ModelSection")
      .def_readwrite("path", &ModelSection::path)
      .def_readwrite("kind", &ModelSection::kind)
      .def_readwrite("dtype", &ModelSection::dtype)
      .def_readwrite("scratch", &ModelSection::scratch);
  py::class_<Samples>(m, "Samples")
      .def_readwrite("samples", &Samples::samples)
      .def_readwrite("sequence_length", &Samples::sequence_length);
  py::class_<DataSource>(m, "DataSource")
      .def(py::init<>())
      .def_readwrite("path", &DataSource::path)
      .def_readwrite("subset", &DataSource::subset)
      .def_readwrite("split", &DataSource::split)
      .def_readwrite("column", &DataSource::column)
      .def_readwrite("weight", &DataSource::weight);
  py::class_<DataSection>(m, "DataSection")
      .def_readwrite("train", &DataSection::train)
      .def_readwrite("sources", &DataSection::sources)
      .def_readwrite("loss_on", &DataSection::loss_on)
      .def_readwrite("packing", &DataSection::packing)
      .def_readwrite("evaluation_path", &DataSection::evaluation_path)
      .def_readonly("calibration", &DataSection::calibration)
      .def_readonly("evaluation", &DataSection::evaluation);
}

void def_train(py::module_& m) {
  py::class_<LoraSection>(m, "LoraSection")
      .def(py::init<>())
      .def_readwrite("rank", &LoraSection::rank)
      .def_readwrite("alpha", &LoraSection::alpha);
  py::class_<OscillationSection>(m, "OscillationSection")
      .def(py::init<>())
      .def_readwrite("method", &OscillationSection::method)
      .def_readwrite("dampening", &OscillationSection::dampening)
      .def_readwrite("threshold", &OscillationSection::threshold);
  py::class_<TrainSection>(m, "TrainSection")
      .def(py::init<>())
      .def("__copy__", [](const TrainSection& self) { return self; })
      .def_readwrite("steps", &TrainSection::steps)
      .def_readwrite("epochs", &TrainSection::epochs)
      .def_readwrite("optimizer", &TrainSection::optimizer)
      .def_readwrite("masters", &TrainSection::masters)
      .def_readwrite("batch_size", &TrainSection::batch_size)
      .def_readwrite("sequence_length", &TrainSection::sequence_length)
      .def_readwrite("gradient_accumulation", &TrainSection::gradient_accumulation)
      .def_readwrite("learning_rate", &TrainSection::learning_rate)
      .def_readwrite("relative_learning_rate", &TrainSection::relative_learning_rate)
      .def_readwrite("scale_learning_rate", &TrainSection::scale_learning_rate)
      .def_readwrite("weight_decay", &TrainSection::weight_decay)
      .def_readwrite("gradient_clip", &TrainSection::gradient_clip)
      .def_readwrite("learning_rate_decay", &TrainSection::learning_rate_decay)
      .def_readwrite("warmup", &TrainSection::warmup)
      .def_readwrite("freeze_observers", &TrainSection::freeze_observers)
      .def_readwrite("checkpoint_every", &TrainSection::checkpoint_every)
      .def_readwrite("seed", &TrainSection::seed)
      .def_readwrite("parameters", &TrainSection::parameters)
      .def_readwrite("lora", &TrainSection::lora)
      .def_readwrite("oscillation", &TrainSection::oscillation)
      .def_readwrite("gradient_checkpointing", &TrainSection::gradient_checkpointing)
      .def_readwrite("compile", &TrainSection::compile)
      .def_readwrite("mixed_precision", &TrainSection::mixed_precision)
      .def_readwrite("strategy", &TrainSection::strategy)
      .def_readwrite("cpu_offload", &TrainSection::cpu_offload)
      .def_readwrite("non_finite", &TrainSection::non_finite)
      .def_readwrite("weight_cache", &TrainSection::weight_cache)
      .def_readwrite("validate_every", &TrainSection::validate_every)
      .def_readwrite("monitor", &TrainSection::monitor)
      .def_readwrite("tensorboard", &TrainSection::tensorboard)
      .def_readwrite("control", &TrainSection::control);
}

void def_distill_and_evaluate(py::module_& m) {
  py::class_<DistillSection>(m, "DistillSection")
      .def(py::init<>())
      .def_readwrite("teacher", &DistillSection::teacher)
      .def_readwrite("loss", &DistillSection::loss)
      .def_readwrite("temperature", &DistillSection::temperature)
      .def_readwrite("weight", &DistillSection::weight);
  py::class_<EvaluateSection>(m, "EvaluateSection")
      .def_readwrite("compare", &EvaluateSection::compare)
      .def_readwrite("sensitivity", &EvaluateSection::sensitivity)
      .def_readwrite("task", &EvaluateSection::task)
      .def_readonly("accept_task_drop", &EvaluateSection::accept_task_drop)
      .def_readonly("accept_cosine", &EvaluateSection::accept_cosine)
      .def_readonly("accept_kl", &EvaluateSection::accept_kl)
      .def_readonly("accept_perplexity_ratio", &EvaluateSection::accept_perplexity_ratio);
}

}  // namespace

// Python's Recipe is the whole one.
void def_run_recipe(py::module_& m) {
  def_model_and_data(m);
  def_train(m);
  def_distill_and_evaluate(m);
  py::class_<RunRecipe>(m, "Recipe")
      .def("__copy__", [](const RunRecipe& self) { return RunRecipe(self); })
      .def_readonly("file", &RunRecipe::file)
      .def_readonly("text", &RunRecipe::text)
      .def_readwrite("mode", &RunRecipe::mode)
      .def_readwrite("device", &RunRecipe::device)
      .def_readwrite("engine", &RunRecipe::engine)
      .def_readwrite("size_bits_per_weight", &RunRecipe::size_bits_per_weight)
      .def_readwrite("model", &RunRecipe::model)
      .def_readwrite("data", &RunRecipe::data)
      .def_readonly("kv_cache", &RunRecipe::kv_cache)
      .def_readwrite("initialize", &RunRecipe::initialize)
      .def_readwrite("train", &RunRecipe::train)
      .def_readwrite("distill", &RunRecipe::distill)
      .def_readwrite("evaluate", &RunRecipe::evaluate)
      .def_readwrite("exports", &RunRecipe::exports);
  py::class_<RecipeKey>(m, "RecipeKey")
      .def_readonly("path", &RecipeKey::path)
      .def_readonly("types", &RecipeKey::types)
      .def_readonly("words", &RecipeKey::words)
      .def_readonly("fallbacks", &RecipeKey::fallbacks)
      .def_readonly("least", &RecipeKey::least)
      .def_readonly("greatest", &RecipeKey::greatest)
      .def_readonly("required", &RecipeKey::required)
      .def_readonly("meaning", &RecipeKey::meaning);
  m.def("recipe_keys", &recipe_keys, "Every key of recipes, as the reader asks for it.\n");
  m.def(
      "load_recipe", &load_run_recipe, py::arg("path"),
      py::arg("settings") = std::vector<std::string>(),
      "The recipe in a YAML file.\n\nArgs:\n    path: The file.\n    settings: What holds in place "
      "of what it says, ``KEY=VALUE`` each, such as ``train.steps=300``; the value is YAML, and "
      "none takes\n        the key out.\n\nRaises:\n    RecipeError: Every problem of it, each "
      "with "
      "file, line and column: what the key must be, and what it is.\n");
  m.def("parse_recipe", &parse_run_recipe, py::arg("text"), py::arg("file") = "recipe",
        py::arg("settings") = std::vector<std::string>(),
        "The same for a text; ``file`` names it in messages.\n");
}

}  // namespace qat::bindings
