#pragma once

#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/plan.h"
#include "qat/recipe/presets.h"

namespace qat {

// The mixes of types by which llama.cpp's users know its files: "q4_k_m" is Q4_K for most layers and
// Q6_K for half of those whose rounding costs most. Its own rules (llama-quant.cpp), by what a layer
// is and in which block, so that a file of a mix has the types that llama-quantize would give it.
//
//   q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k
QAT_API const std::vector<std::string>& mix_names();

// The type that most layers of a mix have.
QAT_API const Preset& mix_base(const std::string& mix);

// What a mix gives one layer.
struct QAT_API MixedType {
  const Preset* type = nullptr;  // none where blocks of 32 columns do not fit
  std::string note;  // for people: "q6_k of q4_k_m", with the type that it stands in for, and why
};

// The types of all layers of a model. Where 256 does not divide a layer's columns they are those of
// llama.cpp's fallback, in blocks of 32: Q4_0 for Q2_K and Q3_K, Q5_0 for Q4_K, Q5_1 for Q5_K and Q8_0
// for Q6_K.
QAT_API std::vector<MixedType> mix_types(const std::string& mix,
                                         const std::vector<LayerInfo>& layers);

}  // namespace qat
