#include "qat/recipe/recipe.h"

#include "python/bindings/module.h"

namespace qat::bindings {
namespace {

Initialize make_initialize(const std::string& method) {
  Initialize initialize;
  const std::string rule = parse_method(method, &initialize);
  if (!rule.empty()) throw std::invalid_argument("method " + rule + ", but is " + method + ".");
  return initialize;
}

py::tuple state_of(const Initialize& self) {
  const BlockTraining& blocks = self.block_training;
  return py::make_tuple(self.method, self.damping, self.block_size, self.order, self.scale_search,
                        self.correction, self.smoothing, self.sequential, blocks.steps,
                        blocks.batch_size, blocks.learning_rate, blocks.scale_learning_rate,
                        blocks.rounding);
}

Initialize initialize_from(const py::tuple& state) {
  Initialize self = make_initialize(state[0].cast<std::string>());
  BlockTraining& blocks = self.block_training;
  self.damping = state[1].cast<double>();
  self.block_size = state[2].cast<int64_t>();
  self.order = state[3].cast<std::string>();
  self.scale_search = state[4].cast<std::string>();
  self.correction = state[5].cast<double>();
  self.smoothing = state[6].cast<double>();
  self.sequential = state[7].cast<bool>();
  blocks.steps = state[8].cast<int64_t>();
  blocks.batch_size = state[9].cast<int64_t>();
  blocks.learning_rate = state[10].cast<double>();
  blocks.scale_learning_rate = state[11].cast<double>();
  blocks.rounding = state[12].cast<std::string>();
  return self;
}

void def_sections(py::module_& m) {
  py::class_<Bound>(m, "Bound")
      .def(py::init([](double value, bool is_percent) { return Bound{is_percent, value}; }),
           py::arg("value"), py::arg("is_percent") = true)
      .def("step_of", &Bound::step_of, py::arg("total_steps"));
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
  py::class_<DataSection>(m, "DataSection")
      .def_readwrite("train", &DataSection::train)
      .def_readwrite("evaluation_path", &DataSection::evaluation_path)
      .def_readonly("calibration", &DataSection::calibration)
      .def_readonly("evaluation", &DataSection::evaluation);
  py::class_<BlockTraining>(m, "BlockTraining")
      .def_readwrite("steps", &BlockTraining::steps)
      .def_readwrite("batch_size", &BlockTraining::batch_size)
      .def_readwrite("learning_rate", &BlockTraining::learning_rate)
      .def_readwrite("scale_learning_rate", &BlockTraining::scale_learning_rate)
      .def_readwrite("rounding", &BlockTraining::rounding);
  py::class_<Initialize>(m, "Initialize")
      .def(py::init(&make_initialize), py::arg("method") = "mse")
      .def_readonly("method", &Initialize::method)
      .def_readonly("transforms", &Initialize::transforms)
      .def_readonly("rounding", &Initialize::rounding)
      .def_readwrite("damping", &Initialize::damping)
      .def_readwrite("block_size", &Initialize::block_size)
      .def_readwrite("order", &Initialize::order)
      .def_readwrite("scale_search", &Initialize::scale_search)
      .def_readwrite("correction", &Initialize::correction)
      .def_readwrite("smoothing", &Initialize::smoothing)
      .def_readwrite("sequential", &Initialize::sequential)
      .def_readwrite("block_training", &Initialize::block_training)
      .def_property_readonly("keeps_scales", &Initialize::keeps_scales)
      .def_property_readonly("needs_data", &Initialize::needs_data)
      .def(py::pickle(&state_of, &initialize_from));
  py::class_<DistillSection>(m, "DistillSection")
      .def(py::init<>())
      .def_readwrite("teacher", &DistillSection::teacher)
      .def_readwrite("loss", &DistillSection::loss)
      .def_readwrite("temperature", &DistillSection::temperature)
      .def_readwrite("weight", &DistillSection::weight);
  py::class_<EvaluateSection>(m, "EvaluateSection")
      .def_readwrite("metrics", &EvaluateSection::metrics)
      .def_readwrite("compare", &EvaluateSection::compare)
      .def_readwrite("sensitivity", &EvaluateSection::sensitivity)
      .def_readwrite("task", &EvaluateSection::task)
      .def_readonly("accept_task_drop", &EvaluateSection::accept_task_drop)
      .def_readonly("accept_cosine", &EvaluateSection::accept_cosine)
      .def_readonly("accept_kl", &EvaluateSection::accept_kl)
      .def_readonly("accept_perplexity_ratio", &EvaluateSection::accept_perplexity_ratio);
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
      .def_readwrite("steps", &TrainSection::steps)
      .def_readwrite("batch_size", &TrainSection::batch_size)
      .def_readwrite("sequence_length", &TrainSection::sequence_length)
      .def_readwrite("gradient_accumulation", &TrainSection::gradient_accumulation)
      .def_readwrite("learning_rate", &TrainSection::learning_rate)
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

}  // namespace

void def_recipe(py::module_& m) {
  py::register_exception<RecipeError>(m, "RecipeError", PyExc_ValueError);
  def_sections(m);
  def_train(m);
  py::class_<Recipe>(m, "Recipe")
      .def_readonly("file", &Recipe::file)
      .def_readonly("text", &Recipe::text)
      .def_readwrite("mode", &Recipe::mode)
      .def_readwrite("engine", &Recipe::engine)
      .def_readwrite("size_bits_per_weight", &Recipe::size_bits_per_weight)
      .def_readwrite("model", &Recipe::model)
      .def_readwrite("data", &Recipe::data)
      .def_readonly("kv_cache", &Recipe::kv_cache)
      .def_readwrite("initialize", &Recipe::initialize)
      .def_readwrite("train", &Recipe::train)
      .def_readwrite("distill", &Recipe::distill)
      .def_readwrite("evaluate", &Recipe::evaluate)
      .def_readwrite("exports", &Recipe::exports);
  m.def("load_recipe", &load_recipe, py::arg("path"),
        "The recipe in a YAML file.\n\nRaises:\n    RecipeError: Every problem of it, each with "
        "file, line and column: what the key must be, and what it is.\n");
  m.def("parse_recipe", &parse_recipe, py::arg("text"), py::arg("file") = "recipe",
        "The same for a text; ``file`` names it in messages.\n");
}

}  // namespace qat::bindings
