#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/spec.h"

namespace qat {

// A number type with its groups and scales, as one `dtype` of a recipe names them all:
//
//   nvfp4        E2M1 in groups of 16, E4M3 scales times a float32 one for the whole weight
//   mxfp4        E2M1 in groups of 32, scales that are powers of two (OCP MX); so are
//   mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2
//   q4_k, q5_k   4 and 5 bits over an offset, in groups of 32; scales and offsets are 6-bit multiples
//                of a float16 number for 256 columns (llama.cpp)
//   q6_k         6 bits in groups of 16, 8-bit multiples of a float16 number for 256 columns
struct QAT_API Preset {
  const char* name;
  QuantSpec spec;

  // Whether a tensor that is found anew in every call, an input, may have it.
  bool for_inputs() const { return spec.is_float(); }
  // Whether its scales are powers of two, whose rounding `scale_dtype` may choose.
  bool is_mx() const { return is_power_of_two(spec.scale.code); }
};

QAT_API const std::vector<Preset>& presets();
QAT_API const Preset* find_preset(const std::string& name);

// The preset that a spec has the levels, groups and scales of, or none.
QAT_API const Preset* preset_of(const QuantSpec& spec);

}  // namespace qat
