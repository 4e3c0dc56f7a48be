#include "qat/recipe/spec_reader.h"

namespace qat {

// A range that is searched once is Range::fixed, whatever the search minimises, or the start of a
// learned one.
void read_observer(YamlSection& section, QuantSpec& spec) {
  ObserverSpec& observer = spec.observer;
  if (spec.dynamic) {
    for (const auto* key : {"observer", "percentile", "averaging_constant"})
      if (section.has(key)) section.reject(key, "must not be given for a dynamic input");
    return;
  }
  std::vector<std::string> allowed{"minmax", "moving_average", "percentile"};
  if (!spec.is_float()) allowed.insert(allowed.end(), {"mse", "entropy"});
  const bool searched = spec.range != Range::minmax;
  observer.kind = parse_observer(section.one_of("observer", searched ? "mse" : "minmax", allowed));
  observer.percentile = section.number("percentile", observer.percentile, 50.0, 100.0);
  observer.averaging_constant =
      section.number("averaging_constant", observer.averaging_constant, 1e-6, 1.0);
  for (const auto& [key, kind] : {std::pair("percentile", ObserverKind::percentile),
                                  std::pair("averaging_constant", ObserverKind::moving_average)})
    if (section.has(key) && observer.kind != kind)
      section.reject(key, std::string("must not be given for observer ") + name_of(observer.kind));
  if (observer.kind == ObserverKind::entropy && (!spec.symmetric() || spec.bits != 8))
    section.reject("observer", "must not be entropy unless the input is a symmetric int8");
  if (section.has("scale") && spec.range == (follows(observer.kind) ? Range::fixed : Range::minmax))
    section.reject("scale", std::string("must not be ") + name_of(spec.range) + " for observer " +
                                name_of(observer.kind));
  if (!follows(observer.kind) && spec.range == Range::minmax) spec.range = Range::fixed;
}

}  // namespace qat
