#include "qat/checkpoint/safetensors.h"

#include <pybind11/stl/filesystem.h>

#include "python/bindings/module.h"

namespace qat::bindings {

void def_safetensors(py::module_& m) {
  py::register_exception<FileError>(m, "FileError", PyExc_OSError);
  m.def("save_safetensors", &save_safetensors, py::arg("path"), py::arg("tensors"),
        py::arg("metadata") = Metadata{{"format", "pt"}});
  m.def("load_safetensors", &load_safetensors, py::arg("path"));
  py::class_<SafetensorsReader>(m, "SafetensorsReader")
      .def(py::init<const std::filesystem::path&>(), py::arg("path"))
      .def("names", &SafetensorsReader::names)
      .def("read", &SafetensorsReader::read, py::arg("name"))
      .def("shape_of", &SafetensorsReader::shape_of, py::arg("name"));
  m.def("check_safetensors", &check_safetensors, py::arg("path"));
}

}  // namespace qat::bindings
