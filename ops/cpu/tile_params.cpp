#include "qat/ops/cpu/tile_params.h"

#include "qat/ops/cpu/round_scales.h"

namespace qat {

void round_params(const RoundParams& how, int64_t block, int count, TileParams& params) {
  vectorised([&]() QAT_BODY {
    round_scales(how, block, count, params);
    if (!how.shifts || how.quantizer.has_offset()) return;
    const Levels levels = how.quantizer.levels();
    for_each_lane(count, [&](int k) QAT_BODY {
      params.zero_point[k] = stored_zero_point(params.zero_point[k], levels);
    });
  });
}

}  // namespace qat
