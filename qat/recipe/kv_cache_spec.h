#pragma once

#include <cstdint>
#include <string>

#include "qat/ops/api.h"
#include "qat/spec.h"

namespace qat {

class YamlSection;

// The recipe's section `kv_cache`: how the cache of attention's keys (after the rotary embedding)
// and values is quantized.
struct QAT_API KvCacheSpec {
  // Granularity tensor, head, token, group or channel, of values not channel. NVFP4 and the MX types
  // are groups whose scales are codes.
  QuantSpec key;
  QuantSpec value;
  int64_t recent = 0;  // latest tokens that a query finds as they are
  int64_t first = 0;   // tokens at the beginning that stay as they are
  bool operator==(const KvCacheSpec& other) const = default;

  // Whether scales are found beforehand, on calibration data.
  bool calibrated() const { return !key.dynamic || !value.dynamic; }
  // Whether scales that are found in every call are multiples of outer ones from calibration.
  bool has_outer() const { return key.scale.has_outer(); }
  // Whether queries differ in what they find quantized.
  bool mixes() const { return recent > 0 || key.granularity == Granularity::channel; }
};

// One line, such as "int4 channel 32 keys, int4 token values, the latest 128 tokens as they are".
QAT_API std::string describe(const KvCacheSpec& spec);

KvCacheSpec read_kv_cache(YamlSection& section);

}  // namespace qat
