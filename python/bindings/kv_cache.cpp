#include "qat/nn/kv_cache.h"

#include "python/bindings/module.h"

namespace qat::bindings {
namespace {

std::optional<at::Tensor> given(const at::Tensor& scale) {
  return scale.defined() ? std::optional(scale) : std::nullopt;
}

}  // namespace

void def_kv_cache(py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<KvCacheSpec>(m, "KvCacheSpec")
      .def(py::init([](const QuantSpec& key, const QuantSpec& value, int64_t recent,
                       int64_t first) { return KvCacheSpec{key, value, recent, first}; }),
           py::arg("key"), py::arg("value"), py::kw_only(), py::arg("recent") = 0,
           py::arg("first") = 0)
      .def_readonly("key", &KvCacheSpec::key)
      .def_readonly("value", &KvCacheSpec::value)
      .def_readonly("recent", &KvCacheSpec::recent)
      .def_readonly("first", &KvCacheSpec::first)
      .def_property_readonly("calibrated", &KvCacheSpec::calibrated)
      .def_property_readonly("mixes", &KvCacheSpec::mixes)
      .def("__eq__", [](const KvCacheSpec& a, const KvCacheSpec& b) { return a == b; })
      .def("__repr__", [](const KvCacheSpec& spec) { return describe(spec); })
      .def(py::pickle(
          [](const KvCacheSpec& spec) {
            return py::make_tuple(spec.key, spec.value, spec.recent, spec.first);
          },
          [](const py::tuple& state) {
            return KvCacheSpec{state[0].cast<QuantSpec>(), state[1].cast<QuantSpec>(),
                               state[2].cast<int64_t>(), state[3].cast<int64_t>()};
          }));
  py::class_<KvCache>(m, "KvCache")
      .def(py::init<const KvCacheSpec&, int64_t, int64_t>(), py::arg("spec"), py::arg("heads"),
           py::arg("head_size"))
      .def("observe", &KvCache::observe, py::arg("key"), py::arg("value"), Released())
      .def_property_readonly("key_scale",
                             [](const KvCache& cache) { return given(cache.key_scale()); })
      .def_property_readonly("value_scale",
                             [](const KvCache& cache) { return given(cache.value_scale()); })
      .def_property_readonly("ignored", &KvCache::ignored)
      .def_property_readonly("notes", &KvCache::notes)
      .def("attend", &KvCache::attend, py::arg("query"), py::arg("key"), py::arg("value"),
           py::arg("mask"), py::arg("scaling"), Released());
}

}  // namespace qat::bindings
