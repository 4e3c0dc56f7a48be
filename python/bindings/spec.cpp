#include "qat/spec.h"

#include "python/bindings/module.h"
#include "qat/names.h"
#include "qat/ops/checks.h"
#include "qat/recipe/presets.h"

namespace qat::bindings {
namespace {

QuantSpec make_spec(int bits, const std::string& grid, const std::string& granularity,
                    int64_t group_size, std::array<int64_t, 2> block, const std::string& scale,
                    const std::string& scale_dtype, bool dynamic, const std::string& observer,
                    double percentile, double averaging_constant,
                    std::array<int64_t, 2> outer_block, const std::string& outer_dtype) {
  check_bits("QuantSpec", bits);
  QuantSpec spec{
      bits,
      parse_grid("QuantSpec", grid),
      parse_granularity(granularity),
      group_size,
      block,
      parse_range(scale),
      {parse_scale_code("QuantSpec", scale_dtype), outer_block, parse_dtype(outer_dtype)},
      dynamic,
      {parse_observer(observer), percentile, averaging_constant}};
  if (spec.is_named()) spec.bits = named_bits(spec.grid);
  if (spec.granularity == Granularity::group && group_size < 1)
    throw std::invalid_argument("group_size must be positive for granularity group, but is " +
                                std::to_string(group_size) + ".");
  // For what the operators refuse.
  Quantizer::parse(quantizer_of(spec, spec.bits, Quantizer::Mode::fixed).text());
  if (spec.range == Range::absmean)
    Quantizer::parse(quantizer_of(spec, spec.bits, Quantizer::Mode::absmean).text());
  return spec;
}

py::tuple state_of(const QuantSpec& spec) {
  return py::make_tuple(
      spec.bits, grid_name(spec.grid), name_of(spec.granularity), spec.group_size, spec.block[0],
      spec.block[1], name_of(spec.range), scale_code_name(spec.scale.code), spec.dynamic,
      name_of(spec.observer.kind), spec.observer.percentile, spec.observer.averaging_constant,
      spec.scale.outer_block[0], spec.scale.outer_block[1], name_of(spec.scale.outer_dtype));
}

QuantSpec from_state(const py::tuple& state) {
  // States of before there were outer scales are shorter.
  const bool outer = state.size() > 12;
  return make_spec(state[0].cast<int>(), state[1].cast<std::string>(), state[2].cast<std::string>(),
                   state[3].cast<int64_t>(), {state[4].cast<int64_t>(), state[5].cast<int64_t>()},
                   state[6].cast<std::string>(), state[7].cast<std::string>(),
                   state[8].cast<bool>(), state[9].cast<std::string>(), state[10].cast<double>(),
                   state[11].cast<double>(),
                   {outer ? state[12].cast<int64_t>() : 0, outer ? state[13].cast<int64_t>() : 0},
                   outer ? state[14].cast<std::string>() : "float32");
}

py::tuple sides_of(const std::array<int64_t, 2>& block) {
  return py::make_tuple(block[0], block[1]);
}

// The ends of the grid, as integers where its levels are.
py::tuple range_of(const QuantSpec& spec, int bits) {
  const Levels range = quant_range(spec, bits);
  if (!range.whole()) return py::make_tuple(range.min, range.max);
  return py::make_tuple(static_cast<int>(range.min), static_cast<int>(range.max));
}

}  // namespace

void def_spec(py::module_& m) {
  py::class_<QuantSpec>(m, "QuantSpec")
      .def(py::init(&make_spec), py::arg("bits"), py::kw_only(), py::arg("grid") = "narrow",
           py::arg("granularity") = "channel", py::arg("group_size") = 0,
           py::arg("block") = std::array<int64_t, 2>{0, 0}, py::arg("scale") = "minmax",
           py::arg("scale_dtype") = "bfloat16", py::arg("dynamic") = false,
           py::arg("observer") = "minmax", py::arg("percentile") = ObserverSpec().percentile,
           py::arg("averaging_constant") = ObserverSpec().averaging_constant,
           py::arg("outer_block") = std::array<int64_t, 2>{0, 0},
           py::arg("outer_dtype") = "float32")
      .def_readonly("bits", &QuantSpec::bits)
      .def_readonly("group_size", &QuantSpec::group_size)
      .def_readonly("dynamic", &QuantSpec::dynamic)
      .def_property_readonly("grid", [](const QuantSpec& spec) { return grid_name(spec.grid); })
      .def_property_readonly("granularity",
                             [](const QuantSpec& spec) { return name_of(spec.granularity); })
      .def_property_readonly("scale", [](const QuantSpec& spec) { return name_of(spec.range); })
      .def_property_readonly("scale_dtype",
                             [](const QuantSpec& spec) { return scale_code_name(spec.scale.code); })
      .def_property_readonly("outer_block",
                             [](const QuantSpec& spec) { return sides_of(spec.scale.outer_block); })
      .def_property_readonly("has_outer_scale",
                             [](const QuantSpec& spec) { return spec.scale.has_outer(); })
      .def_property_readonly("scales_by_row", &scales_by_row)
      .def_property_readonly("outer_dtype",
                             [](const QuantSpec& spec) { return name_of(spec.scale.outer_dtype); })
      .def_property_readonly("observer",
                             [](const QuantSpec& spec) { return name_of(spec.observer.kind); })
      .def_property_readonly("follows",
                             [](const QuantSpec& spec) { return follows(spec.observer.kind); })
      .def_property_readonly("symmetric", &QuantSpec::symmetric)
      .def_property_readonly("is_float", &QuantSpec::is_float)
      .def_property_readonly("is_named", &QuantSpec::is_named)
      .def_property_readonly("has_offset", &QuantSpec::has_offset)
      .def_property_readonly("takes_widths", &QuantSpec::takes_widths)
      .def_property_readonly("finds_scale", &QuantSpec::finds_scale)
      .def(
          "finder",
          [](const QuantSpec& spec, int bits) { return quantizer_of(spec, bits, 1.0).finder(); },
          py::arg("bits"))
      .def_property_readonly("dtype", &dtype_name)
      .def_property_readonly("block",
                             [](const QuantSpec& spec) { return sides_of(block_shape(spec)); })
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
      .def_property_readonly(
          "type_name",
          [](const QuantSpec& spec) {
            const Preset* preset = preset_of(spec);
            return preset ? std::string(preset->name) : dtype_name(spec);
          },
          "As recipes name it: nvfp4 and its like, else the dtype.")
      .def("quant_range", &range_of, py::arg("bits"))
      .def("block_count", &block_count, py::arg("rows"), py::arg("cols"))
      .def("__eq__", [](const QuantSpec& a, const QuantSpec& b) { return a == b; })
      .def("__hash__", [](const QuantSpec& spec) { return py::hash(state_of(spec)); })
      .def("__repr__", &describe)
      .def(py::pickle(&state_of, &from_state));
  m.def(
      "preset",
      [](const std::string& name) {
        if (const Preset* found = find_preset(name)) return found->spec;
        std::vector<std::string> names;
        for (const Preset& preset : presets()) names.emplace_back(preset.name);
        throw std::invalid_argument("preset must be " + detail::join(names) + ", but is " + name +
                                    ".");
      },
      py::arg("name"));
}

}  // namespace qat::bindings
