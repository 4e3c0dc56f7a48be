#include <pybind11/stl/filesystem.h>

#include "python/bindings/module.h"
#include "qat/checkpoint/checkpoint.h"
#include "qat/checkpoint/formats/compressed_tensors.h"
#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/gguf.h"
#include "qat/recipe/fused_layers.h"

namespace qat::bindings {

void def_formats(py::module_& m) {
  py::class_<CheckpointPlan>(m, "CheckpointPlan")
      .def(py::init([](std::vector<LayerPlan> layers, std::vector<std::string> ignore,
                       std::optional<KvCacheSpec> kv_cache) {
             return CheckpointPlan{std::move(layers), std::move(ignore), std::move(kv_cache)};
           }),
           py::arg("layers"), py::arg("ignore") = std::vector<std::string>{},
           py::arg("kv_cache") = std::nullopt)
      .def_readonly("layers", &CheckpointPlan::layers)
      .def_readonly("ignore", &CheckpointPlan::ignore)
      .def_readonly("kv_cache", &CheckpointPlan::kv_cache);
  py::class_<Format>(m, "Format")
      .def_readonly("name", &Format::name)
      .def_readonly("used_by", &Format::used_by)
      .def_readonly("dtype", &Format::dtype)
      .def_readonly("number_types", &Format::number_types)
      .def("refusal", &refusal, py::arg("layer"))
      .def(
          "tensors",
          [](const Format& self, const QuantizedWeights& layer) { return self.tensors(layer); },
          py::arg("layer"))
      .def(
          "documents",
          [](const Format& self, const CheckpointPlan& plan) { return self.documents(plan); },
          py::arg("plan"))
      .def("bits_per_weight", &bits_per_weight_in, py::arg("layer"))
      .def("size_of_weight", &size_of_weight_in, py::arg("spec"), py::arg("rows"), py::arg("cols"),
           py::arg("scale_bits") = 0, py::arg("input") = std::nullopt)
      .def("check", &check_format, py::arg("plan"));
  m.def("formats", &formats, py::return_value_policy::reference);
  m.def("find_format", &find_format, py::return_value_policy::reference, py::arg("name"));
  m.def("fused_layers", &fused_layers);
  m.def("fusion_warning", &fusion_warning, py::arg("plan"));
  m.def("holds_kv_cache", &holds_kv_cache, py::arg("spec"));
  m.def("gguf_type", &gguf_type, py::arg("spec"), py::arg("columns"));
  py::class_<Checkpoint>(m, "Checkpoint")
      .def_readonly("layers", &Checkpoint::layers)
      .def_readonly("others", &Checkpoint::others);
  m.def("load_checkpoint", &load_checkpoint, py::arg("folder"));
}

}  // namespace qat::bindings
