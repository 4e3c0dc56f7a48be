#include "qat/recipe/presets.h"

namespace qat {
namespace {

QuantSpec groups(Grid grid, int bits, int64_t group_size, const ScaleSpec& scale) {
  QuantSpec spec;
  spec.bits = bits;
  spec.grid = grid;
  spec.granularity = Granularity::group;
  spec.group_size = group_size;
  spec.scale = scale;
  return spec;
}

Preset mx(const char* name, Grid grid) {
  return {name, groups(grid, named_bits(grid), 32, {ScaleCode::e8m0_floor})};
}

// Of llama.cpp: a float16 scale for each group.
Preset plain(const char* name, Grid grid, int bits, int64_t group_size) {
  return {name, groups(grid, bits, group_size, {ScaleCode::float16})};
}

// Over the super-blocks of llama.cpp's K-quants.
Preset k(const char* name, Grid grid, int bits, int64_t group_size, ScaleCode code) {
  return {name, groups(grid, bits, group_size, {code, {1, 256}, c10::ScalarType::Half})};
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> kPresets{
      {"nvfp4", groups(Grid::e2m1, 4, 16, {ScaleCode::e4m3, {-1, -1}, c10::ScalarType::Float})},
      mx("mxfp4", Grid::e2m1),
      mx("mxfp6_e2m3", Grid::e2m3),
      mx("mxfp6_e3m2", Grid::e3m2),
      mx("mxfp8_e4m3", Grid::e4m3),
      mx("mxfp8_e5m2", Grid::e5m2),
      k("q2_k", Grid::offset, 2, 16, ScaleCode::int4),
      k("q3_k", Grid::extreme, 3, 16, ScaleCode::int6_signed),
      k("q4_k", Grid::offset, 4, 32, ScaleCode::int6),
      k("q5_k", Grid::offset, 5, 32, ScaleCode::int6),
      k("q6_k", Grid::extreme, 6, 16, ScaleCode::int8),
      plain("q4_0", Grid::extreme, 4, 32),
      plain("q4_1", Grid::offset, 4, 32),
      plain("q5_0", Grid::extreme, 5, 32),
      plain("q5_1", Grid::offset, 5, 32),
      plain("q8_0", Grid::narrow, 8, 32),
      plain("q2_0", Grid::extreme, 2, 64),
      plain("tq2_0", Grid::narrow, 2, 256),
      plain("iq4_nl", Grid::iq4_nl, 4, 32),
      k("iq4_xs", Grid::iq4_nl, 4, 32, ScaleCode::int6_signed),
  };
  return kPresets;
}

const Preset* find_preset(const std::string& name) {
  for (const Preset& preset : presets())
    if (name == preset.name) return &preset;
  return nullptr;
}

const Preset* preset_of(const QuantSpec& spec) {
  const auto same_scale = [](const ScaleSpec& a, const ScaleSpec& b) {
    const bool codes = a.code == b.code || (is_power_of_two(a.code) && is_power_of_two(b.code)) ||
                       (is_e4m3(a.code) && is_e4m3(b.code));
    return codes && a.outer_block == b.outer_block && a.outer_dtype == b.outer_dtype;
  };
  for (const Preset& preset : presets())
    if (spec.grid == preset.spec.grid && spec.bits == preset.spec.bits &&
        block_shape(spec) == block_shape(preset.spec) && same_scale(spec.scale, preset.spec.scale))
      return &preset;
  return nullptr;
}

}  // namespace qat
