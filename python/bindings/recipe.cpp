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

}  // namespace

void def_recipe(py::module_& m) {
  py::register_exception<RecipeError>(m, "RecipeError", PyExc_ValueError);
  py::class_<Bound>(m, "Bound")
      .def(py::init([](double value, bool is_percent) { return Bound{is_percent, value}; }),
           py::arg("value"), py::arg("is_percent") = true)
      .def("step_of", &Bound::step_of, py::arg("total_steps"));
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
}

}  // namespace qat::bindings
