#pragma once

#include <torch/csrc/utils/pybind.h>

namespace qat::bindings {

// One function per C++ header, each in the file of the same name.
void def_spec(py::module_& m);
void def_recipe(py::module_& m);
void def_run_recipe(py::module_& m);
void def_plan(py::module_& m);
void def_artifact(py::module_& m);
void def_safetensors(py::module_& m);
void def_formats(py::module_& m);
void def_weight_cache(py::module_& m);
void def_calibration(py::module_& m);
void def_kv_cache(py::module_& m);

}  // namespace qat::bindings
