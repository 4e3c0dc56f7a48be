#pragma once

#include <vector>

#include "qat/recipe/plan.h"

namespace qat {

// What the last rule that reaches a layer says of its weight or of its input.
struct Chosen {
  const Rule* rule = nullptr;
  std::optional<QuantSpec> spec;
  std::string note{};  // of a mix: which of its types, and why
};

// Appends a problem for each rule that would quantize weights that no layer covers, without leave
// to let them stay in floating point.
void check_covered(const std::vector<LayerInfo>& layers, const std::vector<Chosen>& weights,
                   std::vector<Problem>* problems);

// The weights that stay in floating point, each with the reason.
std::vector<LeftAlone> left_alone(const std::vector<LayerInfo>& layers,
                                  const std::vector<Chosen>& weights);

// Lines for people: the shares that are quantized, and what is left, by reason.
QAT_API std::string coverage_text(const Plan& plan);

// Appends a problem where one later rule has decided all of what `rule`, which matches the layers
// `matched`, says: it might as well not be there, and was hardly meant so.
void check_overruled(const Rule& rule, const std::vector<size_t>& matched,
                     const std::vector<LayerInfo>& layers, const std::vector<Chosen>& weights,
                     const std::vector<Chosen>& inputs, std::vector<Problem>* problems);

}  // namespace qat
