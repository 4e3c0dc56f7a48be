#include "qat/solvers/scale_search.h"

namespace qat {

const NameTable<ScaleSearch>& scale_searches() {
  static const NameTable<ScaleSearch> names(
      "scale_search", {{ScaleSearch::minmax, "minmax"}, {ScaleSearch::mse, "mse"}});
  return names;
}

const char* name_of(ScaleSearch search) { return scale_searches().name_of(search); }

ScaleSearch parse_scale_search(const std::string& name) { return scale_searches().parse(name); }

}  // namespace qat
