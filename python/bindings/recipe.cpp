#include "qat/recipe/recipe.h"

#include "python/bindings/module.h"

namespace qat::bindings {
namespace {

// An enumeration as Python sees it: by its name, with another's refused.
template <typename Owner, typename Enum>
void def_name(py::class_<Owner>& owner, const char* name, Enum Owner::* field,
              Enum (*parse)(const std::string&)) {
  owner.def_property(
      name, [field](const Owner& self) { return name_of(self.*field); },
      [field, parse](Owner& self, const std::string& word) { self.*field = parse(word); });
}

std::vector<std::string> transform_names(const Initialize& self) {
  std::vector<std::string> names;
  for (const Transform transform : self.transforms) names.emplace_back(name_of(transform));
  return names;
}

Initialize make_initialize(const std::string& method) {
  Initialize initialize;
  const std::string rule = parse_method(method, &initialize);
  if (!rule.empty()) throw InvalidArgument("method " + rule + ", but is " + method + ".");
  return initialize;
}

py::tuple state_of(const Initialize& self) {
  const BlockTraining& blocks = self.block_training;
  return py::make_tuple(self.method, self.damping, self.block_size, name_of(self.order),
                        name_of(self.scale_search), self.correction, self.smoothing,
                        self.sequential, blocks.steps, blocks.batch_size, blocks.learning_rate,
                        blocks.scale_learning_rate, name_of(blocks.rounding), self.rotation_size,
                        name_of(self.objective), self.sweeps);
}

Initialize initialize_from(const py::tuple& state) {
  Initialize self = make_initialize(state[0].cast<std::string>());
  BlockTraining& blocks = self.block_training;
  self.damping = state[1].cast<double>();
  self.block_size = state[2].cast<int64_t>();
  self.order = parse_column_order(state[3].cast<std::string>());
  self.scale_search = parse_scale_search(state[4].cast<std::string>());
  self.correction = state[5].cast<double>();
  self.smoothing = state[6].cast<double>();
  self.sequential = state[7].cast<bool>();
  blocks.steps = state[8].cast<int64_t>();
  blocks.batch_size = state[9].cast<int64_t>();
  blocks.learning_rate = state[10].cast<double>();
  blocks.scale_learning_rate = state[11].cast<double>();
  blocks.rounding = parse_block_rounding(state[12].cast<std::string>());
  if (state.size() > 13) self.rotation_size = state[13].cast<int64_t>();
  // Of before it was known, GPTQ saw each layer alone.
  self.objective =
      state.size() > 14 ? parse_objective(state[14].cast<std::string>()) : Objective::layer;
  self.sweeps = state.size() > 15 ? state[15].cast<int64_t>() : 0;
  return self;
}

}  // namespace

void def_recipe(py::module_& m) {
  py::register_exception<RecipeError>(m, "RecipeError",
                                      py::module_::import("torchqat.errors").attr("UserError"));
  py::class_<Bound>(m, "Bound")
      .def(py::init([](double value, bool is_percent) { return Bound{is_percent, value}; }),
           py::arg("value"), py::arg("is_percent") = true)
      .def_readonly("value", &Bound::value)
      .def_readonly("is_percent", &Bound::is_percent)
      .def("step_of", &Bound::step_of, py::arg("total_steps"));
  py::class_<BlockTraining> blocks(m, "BlockTraining");
  blocks.def_readwrite("steps", &BlockTraining::steps)
      .def_readwrite("batch_size", &BlockTraining::batch_size)
      .def_readwrite("learning_rate", &BlockTraining::learning_rate)
      .def_readwrite("scale_learning_rate", &BlockTraining::scale_learning_rate);
  def_name(blocks, "rounding", &BlockTraining::rounding, &parse_block_rounding);
  py::class_<Initialize> initialize(m, "Initialize");
  initialize.def(py::init(&make_initialize), py::arg("method") = "mse")
      .def_readonly("method", &Initialize::method)
      .def_property_readonly("transforms", &transform_names)
      .def_property_readonly("rounding",
                             [](const Initialize& self) { return name_of(self.rounding); })
      .def_readwrite("damping", &Initialize::damping)
      .def_readwrite("block_size", &Initialize::block_size)
      .def_readwrite("correction", &Initialize::correction)
      .def_readwrite("sweeps", &Initialize::sweeps)
      .def_readwrite("smoothing", &Initialize::smoothing)
      .def_readwrite("rotation_size", &Initialize::rotation_size)
      .def_readwrite("sequential", &Initialize::sequential)
      .def_readwrite("block_training", &Initialize::block_training)
      .def_property_readonly("keeps_scales", &Initialize::keeps_scales)
      .def_property_readonly("needs_data", &Initialize::needs_data)
      .def_property_readonly("weighs_outputs", &Initialize::weighs_outputs)
      .def(py::pickle(&state_of, &initialize_from));
  def_name(initialize, "order", &Initialize::order, &parse_column_order);
  def_name(initialize, "objective", &Initialize::objective, &parse_objective);
  def_name(initialize, "scale_search", &Initialize::scale_search, &parse_scale_search);
}

}  // namespace qat::bindings
