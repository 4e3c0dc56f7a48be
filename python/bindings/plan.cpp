#include "qat/recipe/plan.h"

#include "python/bindings/module.h"
#include "qat/recipe/bit_schedule.h"
#include "qat/recipe/coverage.h"
#include "qat/recipe/run_recipe.h"
#include "qat/recipe/weight_types.h"

namespace qat::bindings {

void def_plan(py::module_& m) {
  m.attr("FLOAT") = kFloat;
  py::class_<LayerInfo>(m, "LayerInfo")
      .def(py::init([](std::string name, std::string type, int64_t in_features,
                       int64_t out_features, bool by_name_only, std::string why, bool plannable,
                       bool multiplied, int64_t matrices, bool in_block,
                       std::vector<std::string> aliases, bool counted) {
             return LayerInfo{std::move(name), std::move(type), in_features,        out_features,
                              by_name_only,    std::move(why),  plannable,          multiplied,
                              matrices,        in_block,        std::move(aliases), counted};
           }),
           py::arg("name"), py::arg("type"), py::arg("in_features"), py::arg("out_features"),
           py::arg("by_name_only") = false, py::arg("why") = "", py::arg("plannable") = true,
           py::arg("multiplied") = true, py::arg("matrices") = 1, py::arg("in_block") = false,
           py::arg("aliases") = std::vector<std::string>{}, py::arg("counted") = true)
      .def_readonly("name", &LayerInfo::name)
      .def_readonly("type", &LayerInfo::type)
      .def_readonly("in_features", &LayerInfo::in_features)
      .def_readonly("out_features", &LayerInfo::out_features)
      .def_readonly("by_name_only", &LayerInfo::by_name_only)
      .def_readonly("why", &LayerInfo::why)
      .def_readonly("plannable", &LayerInfo::plannable)
      .def_readonly("multiplied", &LayerInfo::multiplied)
      .def_readonly("matrices", &LayerInfo::matrices)
      .def_readonly("in_block", &LayerInfo::in_block)
      .def_readonly("aliases", &LayerInfo::aliases)
      .def_readonly("counted", &LayerInfo::counted);
  py::class_<LeftAlone>(m, "LeftAlone")
      .def_readonly("name", &LeftAlone::name)
      .def_readonly("elements", &LeftAlone::elements)
      .def_readonly("multiplied", &LeftAlone::multiplied)
      .def_readonly("why", &LeftAlone::why);
  py::class_<LayerPlan>(m, "LayerPlan")
      .def(py::init([](std::string name, int64_t in_features, int64_t out_features,
                       std::optional<QuantSpec> weight, std::optional<QuantSpec> input,
                       std::string type, std::vector<std::string> shares, int64_t matrices) {
             return LayerPlan{std::move(name), in_features,     out_features,      weight,
                              input,           std::move(type), std::move(shares), matrices};
           }),
           py::arg("name"), py::arg("in_features"), py::arg("out_features"),
           py::arg("weight") = std::nullopt, py::arg("input") = std::nullopt,
           py::arg("type") = "Linear", py::arg("shares") = std::vector<std::string>{},
           py::arg("matrices") = 1)
      .def_readonly("name", &LayerPlan::name)
      .def_readonly("in_features", &LayerPlan::in_features)
      .def_readonly("out_features", &LayerPlan::out_features)
      .def_readonly("weight", &LayerPlan::weight)
      .def_readonly("input", &LayerPlan::input)
      .def_readonly("type", &LayerPlan::type)
      .def_readonly("shares", &LayerPlan::shares)
      .def_readonly("matrices", &LayerPlan::matrices)
      .def_readonly("multiplied", &LayerPlan::multiplied)
      .def_readonly("note", &LayerPlan::note)
      .def_property_readonly("elements", &LayerPlan::elements);
  py::class_<Stage>(m, "Stage")
      .def_readonly("until", &Stage::until)
      .def_readonly("weight_bits", &Stage::weight_bits)
      .def_readonly("input_bits", &Stage::input_bits);
  py::class_<Plan>(m, "Plan")
      .def_readonly("layers", &Plan::layers)
      .def_readonly("stages", &Plan::stages)
      .def_readonly("untouched", &Plan::untouched)
      .def_readonly("kv_cache", &Plan::kv_cache)
      .def_readonly("left", &Plan::left)
      .def_readonly("parameters", &Plan::parameters)
      .def_property_readonly("quantized", [](const Plan& plan) { return plan.quantized(); })
      .def_property_readonly("quantized_multiplied",
                             [](const Plan& plan) { return plan.quantized(true); })
      .def_property_readonly("multiplied", &Plan::multiplied)
      .def_property_readonly("coverage", &coverage_text)
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
      [](const RunRecipe& recipe, const std::vector<LayerInfo>& layers, int64_t parameters) {
        return make_plan(recipe.core(), layers, parameters);
      },
      py::arg("recipe"), py::arg("layers"), py::arg("parameters") = 0);
  m.def(
      "with_types",
      [](const Plan& plan, const std::map<std::string, std::string>& types,
         const std::string& scale) {
        return with_types(plan, types, parse_scale_code("with_types", scale));
      },
      py::arg("plan"), py::arg("types"), py::arg("scale_dtype") = "bfloat16");
  m.def(
      "retyped",
      [](const LayerPlan& layer, const std::string& type, const std::string& scale) {
        return retyped(layer, type, parse_scale_code("retyped", scale));
      },
      py::arg("layer"), py::arg("type"), py::arg("scale_dtype") = "bfloat16");
  m.def("searched_plan", &searched_plan, py::arg("plan"));
  m.def(
      "weight_of_type",
      [](const QuantSpec& spec, const std::string& type, const std::string& scale) {
        return weight_of_type(spec, type, parse_scale_code("weight_of_type", scale));
      },
      py::arg("spec"), py::arg("type"), py::arg("scale_dtype") = "bfloat16");
  m.def("misfit", &misfit, py::arg("spec"), py::arg("layer"));
  m.def("size_of_weight", &size_of_weight, py::arg("spec"), py::arg("rows"), py::arg("cols"),
        py::arg("scale_bits") = 0);
  m.def("with_widths", &with_widths, py::arg("plan"), py::arg("widths"));
  m.def("float8_plan", &float8_plan, py::arg("plan"));
  m.def("naive_plan", &naive_plan, py::arg("plan"), py::arg("bits"));
}

}  // namespace qat::bindings
