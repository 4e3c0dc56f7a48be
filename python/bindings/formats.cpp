#include "python/bindings/module.h"
#include "qat/formats/compressed_tensors.h"

namespace qat::bindings {

void def_formats(py::module_& m) {
  py::class_<CompressedTensors>(m, "CompressedTensors")
      .def_readonly("tensors", &CompressedTensors::tensors)
      .def_readonly("quantization_config", &CompressedTensors::quantization_config);
  m.def("to_compressed_tensors", &to_compressed_tensors, py::arg("layers"), py::arg("ignore"));
  m.def("fusion_problems", &fusion_problems, py::arg("layers"), py::arg("ignore"));
}

}  // namespace qat::bindings
