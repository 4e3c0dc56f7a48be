#include "qat/recipe/fused_layers.h"

namespace qat {

const std::vector<std::vector<std::string>>& fused_layers() {
  static const std::vector<std::vector<std::string>> kFused{{"q_proj", "k_proj", "v_proj"},
                                                            {"gate_proj", "up_proj"}};
  return kFused;
}

std::vector<std::string> fused_with(const std::string& name) {
  const size_t leaf = name.rfind('.') + 1;  // 0 where there is no dot
  for (const auto& leaves : fused_layers()) {
    if (name.substr(leaf) != leaves.front()) continue;
    std::vector<std::string> others;
    for (size_t i = 1; i < leaves.size(); ++i) others.push_back(name.substr(0, leaf) + leaves[i]);
    return others;
  }
  return {};
}

}  // namespace qat
