// Any text is a recipe or a RecipeError; so is its plan for a model.
#include <string>

#include "qat/recipe/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<qat::LayerInfo> kLayers{
      {"model.layers.0.q_proj", "Linear", 128, 64, false},
      {"stem", "Conv2d", 27, 8, false},
      {"model.embed_tokens", "Embedding", 64, 100, true},
      {"lm_head", "Linear", 64, 100, true}};
  try {
    const qat::Recipe recipe =
        qat::parse_recipe(std::string(reinterpret_cast<const char*>(data), size), "recipe");
    const qat::Plan plan = qat::make_plan(recipe, kLayers);
    qat::to_text(qat::float8_plan(qat::naive_plan(plan, 4)));
    qat::to_text(plan);
  } catch (const qat::RecipeError&) {
  }
  return 0;
}
