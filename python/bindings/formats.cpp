#include "python/bindings/module.h"
#include "qat/formats/compressed_tensors.h"

namespace qat::bindings {

void def_formats(py::module_& m) {
  py::class_<CompressedTensors>(m, "CompressedTensors")
      .def_readonly("tensors", &CompressedTensors::tensors)
      .def_readonly("quantization_config", &CompressedTensors::quantization_config);
  m.def("to_compressed_tensors", &to_compressed_tensors, py::arg("layers"), py::arg("ignore"),
        py::arg("kv_cache") = std::nullopt);
  m.def("compressed_tensors_of", &compressed_tensors_of, py::arg("layer"));
  m.def("compressed_tensors_config", &compressed_tensors_config, py::arg("layers"),
        py::arg("ignore"), py::arg("kv_cache") = std::nullopt);
  m.def("holds_kv_cache", &holds_kv_cache, py::arg("spec"));
  m.def("fusion_problems", &fusion_problems, py::arg("layers"), py::arg("ignore"));
}

}  // namespace qat::bindings
