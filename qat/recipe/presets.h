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
//
// and those of llama.cpp, whose scales are float16 numbers, or multiples of one for 256 columns:
//
//   q2_k         2 bits over an offset, in groups of 16; scales and offsets are 4-bit multiples
//   q3_k         3 bits in groups of 16, scales of 6 bits with a sign
//   q4_k, q5_k   4 and 5 bits over an offset, in groups of 32; scales and offsets of 6 bits
//   q6_k         6 bits in groups of 16, scales of 8 bits with a sign
//   q4_0, q5_0   4 and 5 bits in groups of 32, the element of largest magnitude on the lowest level
//   q4_1, q5_1   4 and 5 bits over an offset, in groups of 32
//   q8_0         8 bits in groups of 32
//   q2_0         2 bits in groups of 64
//   tq2_0        -1, 0 and 1 in groups of 256
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
