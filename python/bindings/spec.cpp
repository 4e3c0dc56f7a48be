#include "qat/spec.h"

#include "python/bindings/module.h"
#include "qat/ops/checks.h"

namespace qat::bindings {
namespace {

QuantSpec make_spec(int bits, const std::string& grid, const std::string& granularity,
                    int64_t group_size, std::array<int64_t, 2> block, const std::string& scale,
                    const std::string& scale_dtype, bool dynamic, const std::string& observer,
                    double percentile, double averaging_constant) {
  check_bits("QuantSpec", bits);
  QuantSpec spec{bits,
                 parse_grid("QuantSpec", grid),
                 parse_granularity(granularity),
                 group_size,
                 block,
                 parse_range(scale),
                 parse_dtype(scale_dtype),
                 dynamic,
                 {parse_observer(observer), percentile, averaging_constant}};
  if (spec.granularity == Granularity::group && group_size < 1)
    throw std::invalid_argument("group_size must be positive for granularity group, but is " +
                                std::to_string(group_size) + ".");
  return spec;
}

py::tuple state_of(const QuantSpec& spec) {
  return py::make_tuple(spec.bits, grid_name(spec.grid), name_of(spec.granularity), spec.group_size,
                        spec.block[0], spec.block[1], name_of(spec.range),
                        name_of(spec.scale_dtype), spec.dynamic, name_of(spec.observer.kind),
                        spec.observer.percentile, spec.observer.averaging_constant);
}

QuantSpec from_state(const py::tuple& state) {
  return make_spec(state[0].cast<int>(), state[1].cast<std::string>(), state[2].cast<std::string>(),
                   state[3].cast<int64_t>(), {state[4].cast<int64_t>(), state[5].cast<int64_t>()},
                   state[6].cast<std::string>(), state[7].cast<std::string>(),
                   state[8].cast<bool>(), state[9].cast<std::string>(), state[10].cast<double>(),
                   state[11].cast<double>());
}

std::pair<int, int> integer_range(const QuantSpec& spec, int bits) {
  const Levels range = quant_range(spec, bits);
  return {static_cast<int>(range.min), static_cast<int>(range.max)};
}

}  // namespace

void def_spec(py::module_& m) {
  py::class_<QuantSpec>(m, "QuantSpec")
      .def(py::init(&make_spec), py::arg("bits"), py::kw_only(), py::arg("grid") = "narrow",
           py::arg("granularity") = "channel", py::arg("group_size") = 0,
           py::arg("block") = std::array<int64_t, 2>{0, 0}, py::arg("scale") = "minmax",
           py::arg("scale_dtype") = "bfloat16", py::arg("dynamic") = false,
           py::arg("observer") = "minmax", py::arg("percentile") = ObserverSpec().percentile,
           py::arg("averaging_constant") = ObserverSpec().averaging_constant)
      .def_readonly("bits", &QuantSpec::bits)
      .def_readonly("group_size", &QuantSpec::group_size)
      .def_readonly("dynamic", &QuantSpec::dynamic)
      .def_property_readonly("grid", [](const QuantSpec& spec) { return grid_name(spec.grid); })
      .def_property_readonly("granularity",
                             [](const QuantSpec& spec) { return name_of(spec.granularity); })
      .def_property_readonly("scale", [](const QuantSpec& spec) { return name_of(spec.range); })
      .def_property_readonly("scale_dtype",
                             [](const QuantSpec& spec) { return name_of(spec.scale_dtype); })
      .def_property_readonly("observer",
                             [](const QuantSpec& spec) { return name_of(spec.observer.kind); })
      .def_property_readonly("follows",
                             [](const QuantSpec& spec) { return follows(spec.observer.kind); })
      .def_property_readonly("symmetric", &QuantSpec::symmetric)
      .def_property_readonly("block", &block_shape)
      .def(
          "weight_quantizer",
          [](const QuantSpec& spec, int bits, int64_t rows, int64_t cols) {
            return weight_quantizer_of(spec, bits, rows, cols).text();
          },
          py::arg("bits"), py::arg("rows"), py::arg("cols"))
      .def(
          "input_quantizer",
          [](const QuantSpec& spec, int bits, int64_t features) {
            return input_quantizer_of(spec, bits, features).text();
          },
          py::arg("bits"), py::arg("features"))
      .def(
          "quantizer",
          [](const QuantSpec& spec, int bits, const std::string& mode) {
            // Parsed for its check of the mode.
            Quantizer given = quantizer_of(spec, bits, Quantizer::Mode::minmax);
            const std::string text = given.text();
            return Quantizer::parse(mode + text.substr(text.find(' '))).text();
          },
          py::arg("bits"), py::arg("mode"))
      .def("quant_range", &integer_range, py::arg("bits"))
      .def("block_count", &block_count, py::arg("rows"), py::arg("cols"))
      .def("__eq__", [](const QuantSpec& a, const QuantSpec& b) { return a == b; })
      .def("__hash__", [](const QuantSpec& spec) { return py::hash(state_of(spec)); })
      .def("__repr__", &describe)
      .def(py::pickle(&state_of, &from_state));
}

}  // namespace qat::bindings
