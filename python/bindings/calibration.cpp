#include <algorithm>

#include "python/bindings/module.h"
#include "qat/solvers/allocation.h"
#include "qat/solvers/equalize.h"
#include "qat/solvers/gptq.h"
#include "qat/solvers/hadamard.h"
#include "qat/solvers/input_statistics.h"
#include "qat/solvers/observer.h"

namespace qat::bindings {
namespace {

using Optional = std::optional<at::Tensor>;
using Released = py::call_guard<py::gil_scoped_release>;

RoundedWeight call_gptq(const at::Tensor& weight, const at::Tensor& hessian, const QuantSpec& spec,
                        int bits, double damping, int64_t block_size, const std::string& order,
                        const std::string& scale_search, double correction, const Optional& drift,
                        const Optional& outer_scale, const Optional& outer_offset,
                        const Optional& output_hessian, double output_damping, int64_t sweeps) {
  const GptqOptions options{damping,
                            block_size,
                            parse_column_order(order),
                            parse_scale_search(scale_search),
                            correction,
                            output_damping,
                            sweeps};
  return solvers::gptq(weight, hessian, spec, bits, options, drift, {outer_scale, outer_offset},
                       output_hessian);
}

std::tuple<at::Tensor, at::Tensor> call_clipped_qparams(const at::Tensor& weight,
                                                        const at::Tensor& hessian,
                                                        const QuantSpec& spec, int bits,
                                                        const Optional& outer_scale,
                                                        const Optional& outer_offset) {
  return solvers::clipped_qparams(weight, hessian, spec, bits, {outer_scale, outer_offset});
}

solvers::ChannelScale call_awq_scale(
    const std::vector<std::tuple<at::Tensor, QuantSpec, int>>& layers,
    const InputStatistics& inputs, int points, const std::vector<int>& shares) {
  std::vector<solvers::Consumer> consumers;
  consumers.reserve(layers.size());
  std::transform(
      layers.begin(), layers.end(), std::back_inserter(consumers), [](const auto& layer) {
        return solvers::Consumer{std::get<0>(layer), std::get<1>(layer), std::get<2>(layer)};
      });
  for (size_t place = 0; place < std::min(shares.size(), consumers.size()); ++place)
    consumers[place].shares = shares[place];
  return solvers::awq_scale(consumers, inputs, points);
}

std::vector<size_t> call_allocate(
    const std::vector<std::vector<std::tuple<int, double, int64_t>>>& layers, int64_t budget) {
  std::vector<std::vector<solvers::WidthOption>> options(layers.size());
  std::transform(layers.begin(), layers.end(), options.begin(), [](const auto& layer) {
    std::vector<solvers::WidthOption> widths(layer.size());
    std::transform(layer.begin(), layer.end(), widths.begin(), [](const auto& width) {
      return solvers::WidthOption{std::get<0>(width), std::get<1>(width), std::get<2>(width)};
    });
    return widths;
  });
  return solvers::allocate_widths(options, budget);
}

}  // namespace

void def_calibration(py::module_& m) {
  // Every one of these lets go of the interpreter: threads share an observer, and one that waits for
  // its lock must not keep the one that has it from running Python.
  const auto read = [](auto method) { return py::cpp_function(method, Released()); };
  py::class_<Observer>(m, "Observer")
      .def(py::init([](const QuantSpec& spec) { return Observer(spec.observer); }), py::arg("spec"))
      .def("observe", &Observer::observe, py::arg("x"), Released())
      .def("restore", py::overload_cast<const at::Tensor&, const at::Tensor&>(&Observer::restore),
           py::arg("low"), py::arg("high"), Released())
      .def("restore", py::overload_cast<double, double>(&Observer::restore), py::arg("low"),
           py::arg("high"), Released())
      .def("reset", &Observer::reset, Released())
      .def("__deepcopy__",
           [](const Observer& self, const py::dict&) {
             const py::gil_scoped_release released;
             return std::make_unique<Observer>(self);
           })
      .def("qparams", &Observer::qparams, py::arg("spec"), py::arg("bits"), Released())
      .def("range", &Observer::range, Released())
      .def_property_readonly("observed", read(&Observer::observed))
      .def_property_readonly("empty", read(&Observer::empty))
      .def_property_readonly("low", read(&Observer::low))
      .def_property_readonly("high", read(&Observer::high))
      .def_property_readonly("ignored", read(&Observer::ignored));
  py::class_<InputStatistics>(m, "InputStatistics")
      .def(py::init<int64_t, bool>(), py::arg("features"), py::arg("drift") = false)
      .def("add", &InputStatistics::add, py::arg("x"), py::arg("original") = std::nullopt,
           Released())
      .def_property_readonly("hessian", &InputStatistics::hessian)
      .def_property_readonly("drift", &InputStatistics::drift)
      .def_property_readonly("mean_magnitude", &InputStatistics::mean_magnitude)
      .def_property_readonly("max_magnitude", &InputStatistics::max_magnitude)
      .def_property_readonly("features", &InputStatistics::features)
      .def_property_readonly("tokens", &InputStatistics::tokens)
      .def_property_readonly("ignored", &InputStatistics::ignored);
  py::class_<RoundedWeight>(m, "RoundedWeight")
      .def_readonly("weight", &RoundedWeight::weight)
      .def_readonly("codes", &RoundedWeight::codes)
      .def_readonly("scale", &RoundedWeight::scale)
      .def_readonly("zero_point", &RoundedWeight::zero_point)
      .def_readonly("target", &RoundedWeight::target)
      .def_readonly("loss", &RoundedWeight::loss)
      .def_readonly("warning", &RoundedWeight::warning);
  const GptqOptions defaults;
  m.def("gptq", &call_gptq, py::arg("weight"), py::arg("hessian"), py::arg("spec"), py::arg("bits"),
        py::arg("damping") = defaults.damping, py::arg("block_size") = defaults.block_size,
        py::arg("order") = name_of(defaults.order),
        py::arg("scale_search") = name_of(defaults.scale_search),
        py::arg("correction") = defaults.correction, py::arg("drift") = std::nullopt,
        py::arg("outer_scale") = std::nullopt, py::arg("outer_offset") = std::nullopt,
        py::arg("output_hessian") = std::nullopt,
        py::arg("output_damping") = defaults.output_damping, py::arg("sweeps") = defaults.sweeps,
        Released());
  py::class_<solvers::ChannelScale>(m, "ChannelScale")
      .def_readonly("scale", &solvers::ChannelScale::scale)
      .def_readonly("loss", &solvers::ChannelScale::loss)
      .def_readonly("plain", &solvers::ChannelScale::plain);
  m.def("awq_scale", &call_awq_scale, py::arg("layers"), py::arg("inputs"), py::arg("points") = 20,
        py::arg("shares") = std::vector<int>(), Released());
  m.def("smoothing_scale", &solvers::smoothing_scale, py::arg("weights"), py::arg("max_magnitude"),
        py::arg("alpha"), Released());
  m.def("clipped_qparams", &call_clipped_qparams, py::arg("weight"), py::arg("hessian"),
        py::arg("spec"), py::arg("bits"), py::arg("outer_scale") = std::nullopt,
        py::arg("outer_offset") = std::nullopt, Released());
  m.def("output_error", &solvers::output_error, py::arg("error"), py::arg("hessian"), Released());
  m.def("allocate_widths", &call_allocate, py::arg("layers"), py::arg("budget"));
  m.def("random_rotation", &solvers::random_rotation, py::arg("size"), py::arg("seed"));
  m.def("has_hadamard", &solvers::has_hadamard, py::arg("size"));
}

}  // namespace qat::bindings
