#include "qat/nn/weight_cache.h"

#include "python/bindings/module.h"

namespace qat::bindings {
namespace {

using Optional = std::optional<at::Tensor>;

void fill_caches(const std::vector<WeightCache*>& caches,
                 const std::vector<std::string>& quantizers, const std::vector<at::Tensor>& weights,
                 const std::vector<Optional>& scales, const std::vector<Optional>& zero_points,
                 const std::vector<Optional>& outer_scales) {
  std::vector<CachedWeight> all;
  all.reserve(caches.size());
  for (size_t i = 0; i < caches.size(); ++i)
    all.push_back({caches[i],
                   Quantizer::parse(quantizers.at(i)),
                   weights.at(i),
                   {scales.at(i), zero_points.at(i), outer_scales.at(i)}});
  fill(all);
}

}  // namespace

void def_weight_cache(py::module_& m) {
  const auto make = [](const std::string& policy) {
    return std::make_unique<WeightCache>(parse_cache_policy(policy));
  };
  py::class_<WeightCache>(m, "WeightCache")
      .def(py::init(make), py::arg("policy") = "none")
      .def(
          "get",
          [](WeightCache& self, const std::string& quantizer, const at::Tensor& weight,
             const Optional& scale, const Optional& zero_point, at::ScalarType dtype,
             const Optional& outer_scale) {
            return self.get(Quantizer::parse(quantizer), weight, {scale, zero_point, outer_scale},
                            dtype);
          },
          py::arg("quantizer"), py::arg("weight"), py::arg("scale"), py::arg("zero_point"),
          py::arg("dtype"), py::arg("outer_scale") = std::nullopt)
      .def("clear", &WeightCache::clear)
      .def_property_readonly("policy",
                             [](const WeightCache& self) { return name_of(self.policy()); })
      .def_property_readonly("bytes", &WeightCache::bytes)
      .def_property_readonly("dtype", &WeightCache::dtype)
      .def_property_readonly("version", &WeightCache::version)
      // Copies and pickles of a layer begin with an empty cache.
      .def("__deepcopy__", [](const WeightCache& self,
                              const py::dict&) { return std::make_unique<WeightCache>(self); })
      .def(py::pickle(
          [](const WeightCache& self) { return py::make_tuple(name_of(self.policy())); },
          [make](const py::tuple& state) { return make(state[0].cast<std::string>()); }));
  m.def("fill_caches", &fill_caches, py::arg("caches"), py::arg("quantizers"), py::arg("weights"),
        py::arg("scales"), py::arg("zero_points"), py::arg("outer_scales"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace qat::bindings
