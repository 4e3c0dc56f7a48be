#include "qat/artifact.h"

#include "python/bindings/module.h"
#include "qat/nn/packed_linear.h"

namespace qat::bindings {
namespace {

QuantizedWeights make_quantized_weights(const std::string& name, const QuantSpec& spec,
                                        const at::Tensor& weight, const at::Tensor& scale,
                                        const at::Tensor& zero_point, at::ScalarType dtype,
                                        const std::optional<at::Tensor>& outer_scale,
                                        const std::optional<at::Tensor>& outer_offset) {
  return quantize_weights(name, spec, weight, scale, zero_point, dtype,
                          {outer_scale, outer_offset});
}

}  // namespace

void def_artifact(py::module_& m) {
  py::class_<QuantizedWeights>(m, "QuantizedWeights")
      .def_readonly("name", &QuantizedWeights::name)
      .def_readonly("weight", &QuantizedWeights::weight)
      .def_readwrite("input", &QuantizedWeights::input)
      .def_readonly("codes", &QuantizedWeights::codes)
      .def_readonly("scale", &QuantizedWeights::scale)
      .def_readonly("zero_point", &QuantizedWeights::zero_point)
      .def_readonly("offset", &QuantizedWeights::offset)
      .def_readonly("outer_scale", &QuantizedWeights::outer_scale)
      .def_readonly("outer_offset", &QuantizedWeights::outer_offset)
      .def_readwrite("input_scale", &QuantizedWeights::input_scale)
      .def_readwrite("input_zero_point", &QuantizedWeights::input_zero_point)
      .def_property_readonly("bits_per_weight", &bits_per_weight)
      .def("rows", &rows_of, py::arg("name"), py::arg("begin"), py::arg("end"))
      .def("dequantize", &dequantize_weights, py::arg("dtype") = std::nullopt);
  m.def("quantize_weights", &make_quantized_weights, py::arg("name"), py::arg("spec"),
        py::arg("weight"), py::arg("scale"), py::arg("zero_point"), py::arg("dtype"),
        py::arg("outer_scale") = std::nullopt, py::arg("outer_offset") = std::nullopt);
  py::class_<PackedWeights>(m, "PackedWeights")
      .def_readonly("panels", &PackedWeights::panels)
      .def_readonly("scale", &PackedWeights::scale)
      .def_property_readonly("zero_point",
                             [](const PackedWeights& packed) {
                               return packed.zero_point.defined() ? std::optional(packed.zero_point)
                                                                  : std::nullopt;
                             })
      .def_readonly("bits", &PackedWeights::bits)
      .def_readonly("group_size", &PackedWeights::group_size);
  m.def("pack_weights", &pack_weights, py::arg("weights"));
}

}  // namespace qat::bindings
