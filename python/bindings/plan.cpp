#include "qat/recipe/plan.h"

#include "python/bindings/module.h"
#include "qat/recipe/bit_schedule.h"
#include "qat/recipe/run_recipe.h"

namespace qat::bindings {

void def_plan(py::module_& m) {
  m.attr("FLOAT") = kFloat;
  py::class_<LayerInfo>(m, "LayerInfo")
      .def(py::init([](std::string name, std::string type, int64_t in_features,
                       int64_t out_features, bool by_name_only) {
             return LayerInfo{std::move(name), std::move(type), in_features, out_features,
                              by_name_only};
           }),
           py::arg("name"), py::arg("type"), py::arg("in_features"), py::arg("out_features"),
           py::arg("by_name_only") = false)
      .def_readonly("name", &LayerInfo::name);
  py::class_<LayerPlan>(m, "LayerPlan")
      .def(py::init([](std::string name, int64_t in_features, int64_t out_features,
                       std::optional<QuantSpec> weight, std::optional<QuantSpec> input,
                       std::string type, std::vector<std::string> shares) {
             return LayerPlan{std::move(name), in_features,     out_features,     weight,
                              input,           std::move(type), std::move(shares)};
           }),
           py::arg("name"), py::arg("in_features"), py::arg("out_features"),
           py::arg("weight") = std::nullopt, py::arg("input") = std::nullopt,
           py::arg("type") = "Linear", py::arg("shares") = std::vector<std::string>{})
      .def_readonly("name", &LayerPlan::name)
      .def_readonly("in_features", &LayerPlan::in_features)
      .def_readonly("out_features", &LayerPlan::out_features)
      .def_readonly("weight", &LayerPlan::weight)
      .def_readonly("input", &LayerPlan::input)
      .def_readonly("type", &LayerPlan::type)
      .def_readonly("shares", &LayerPlan::shares);
  py::class_<Stage>(m, "Stage")
      .def_readonly("until", &Stage::until)
      .def_readonly("weight_bits", &Stage::weight_bits)
      .def_readonly("input_bits", &Stage::input_bits);
  py::class_<Plan>(m, "Plan")
      .def_readonly("layers", &Plan::layers)
      .def_readonly("stages", &Plan::stages)
      .def_readonly("untouched", &Plan::untouched)
      .def_readonly("kv_cache", &Plan::kv_cache)
      .def("__str__", &to_text);
  py::class_<BitSchedule>(m, "BitSchedule")
      .def(py::init([](const RunRecipe& recipe, int64_t total_steps) {
             return BitSchedule(recipe.schedule, recipe.train.freeze_observers, total_steps);
           }),
           py::arg("recipe"), py::arg("total_steps"))
      .def("stage_at", &BitSchedule::stage_at, py::arg("step"))
      .def("weight_bits", &BitSchedule::weight_bits, py::arg("step"), py::arg("target"))
      .def("input_bits", &BitSchedule::input_bits, py::arg("step"), py::arg("target"))
      .def("observing", &BitSchedule::observing, py::arg("step"))
      .def("boundaries", &BitSchedule::boundaries)
      .def_property_readonly("total_steps", &BitSchedule::total_steps);
  m.def(
      "make_plan",
      [](const RunRecipe& recipe, const std::vector<LayerInfo>& layers) {
        return make_plan(recipe.core(), layers);
      },
      py::arg("recipe"), py::arg("layers"));
  m.def("with_widths", &with_widths, py::arg("plan"), py::arg("widths"));
  m.def("float8_plan", &float8_plan, py::arg("plan"));
  m.def("naive_plan", &naive_plan, py::arg("plan"), py::arg("bits"));
}

}  // namespace qat::bindings
