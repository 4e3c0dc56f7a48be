#pragma once

// Scales and offsets of a tile as they are stored, by loops without branches.

#include <type_traits>

#include "qat/ops/cpu/tile_params.h"

namespace qat {

// Calls body with a constant of each value in turn until one is `value`: a loop in it then has no
// branches.
template <auto... kValues, typename Value, typename Body>
QAT_HOST_DEVICE void with_constant(Value value, const Body& body) {
  (void)((value == kValues && (body(std::integral_constant<Value, kValues>()), true)) || ...);
}

// The same with codes that round alike as one.
template <typename Body>
QAT_HOST_DEVICE void with_scale_code(ScaleCode code, const Body& body) {
  using enum ScaleCode;
  if (is_power_of_two(code)) return body(std::integral_constant<ScaleCode, e8m0_floor>());
  if (is_e4m3(code)) return body(std::integral_constant<ScaleCode, e4m3>());
  with_constant<float32, bfloat16, float16, int6, int8, int4, int6_signed>(code, body);
}

// Outer scales of a tile.
QAT_HOST_DEVICE void gather(const OuterScales& outer, int64_t block, int count,
                            float (&to)[kTile]) {
  if (outer.step == 0) return for_each_lane(count, [&](int k) QAT_BODY { to[k] = outer[0]; });
  for (int k = 0; k < count; ++k) to[k] = outer[block + k];
  for_each_spare_lane(count, [&](int k) QAT_BODY { to[k] = 1.0f; });
}

// (7) and (8b)
QAT_HOST_DEVICE void round_scales(const RoundParams& how, int64_t block, int count,
                                  TileParams& params) {
  const bool exact = how.shifts && how.quantizer.exact_offsets();
  const bool offset = how.shifts && how.quantizer.has_offset();
  float by[kTile], offset_by[kTile];
  if (how.outer.at) gather(how.outer, block, count, by);
  if (offset) gather(how.outer_offset, block, count, offset_by);
  with_scale_code(how.quantizer.scale_code, [&](auto code) QAT_BODY {
    const bool in_7_bits = code() == ScaleCode::float16 && exact;
    if (how.outer.at)
      for_each_lane(count, [&](int k) QAT_BODY {
        params.scale[k] = stored_scale(params.scale[k], code(), by[k], in_7_bits);
      });
    else
      for_each_lane(count, [&](int k) QAT_BODY {
        params.scale[k] = stored_scale(params.scale[k], code(), 1.0f, in_7_bits);
      });
    if (!offset) return;
    for_each_lane(count, [&](int k) QAT_BODY {
      params.zero_point[k] = stored_offset(params.zero_point[k], code(), offset_by[k]);
    });
  });
}

}  // namespace qat
