#pragma once

#include <cstdint>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/plan.h"

namespace qat {

// Bit-widths over a run: a pure function of the step, so a resumed run cannot disagree with one
// that was never interrupted. Step s is the s-th optimizer step, counted from 0.
class QAT_API BitSchedule {
 public:
  // Throws InvalidArgument when `total_steps` is negative.
  BitSchedule(std::vector<Stage> stages, Bound freeze_observers, int64_t total_steps);

  // The stage that holds at `step`; the last one from the end of the run on.
  int64_t stage_at(int64_t step) const;
  // Width of a tensor whose exported width is `target`: never fewer bits than that, kFloat before
  // its quantization begins.
  int weight_bits(int64_t step, int target) const;
  int input_bits(int64_t step, int target) const;
  // Whether calibrated input ranges still follow the data.
  bool observing(int64_t step) const;
  // The first step of each stage.
  std::vector<int64_t> boundaries() const;
  int64_t total_steps() const { return total_steps_; }

 private:
  std::vector<Stage> stages_;
  Bound freeze_observers_;
  int64_t total_steps_;
};

}  // namespace qat
