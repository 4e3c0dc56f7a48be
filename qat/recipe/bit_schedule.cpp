#include "qat/recipe/bit_schedule.h"

#include <algorithm>
#include <optional>

#include "qat/error.h"

namespace qat {
namespace {

int width_of(std::optional<int> stage_bits, int target) {
  return stage_bits == kFloat ? kFloat : std::max(stage_bits.value_or(target), target);
}

}  // namespace

BitSchedule::BitSchedule(std::vector<Stage> stages, Bound freeze_observers, int64_t total_steps)
    : stages_(std::move(stages)), freeze_observers_(freeze_observers), total_steps_(total_steps) {
  if (total_steps < 0)
    throw InvalidArgument("total_steps must not be negative, but is " +
                          std::to_string(total_steps) + ".");
  if (stages_.empty()) stages_.push_back(Stage{});
}

int64_t BitSchedule::stage_at(int64_t step) const {
  const int64_t last = static_cast<int64_t>(stages_.size()) - 1;
  for (int64_t stage = 0; stage < last; ++stage)
    if (step < stages_[static_cast<size_t>(stage)].until.step_of(total_steps_)) return stage;
  return last;
}

int BitSchedule::weight_bits(int64_t step, int target) const {
  return width_of(stages_[static_cast<size_t>(stage_at(step))].weight_bits, target);
}

int BitSchedule::input_bits(int64_t step, int target) const {
  return width_of(stages_[static_cast<size_t>(stage_at(step))].input_bits, target);
}

bool BitSchedule::observing(int64_t step) const {
  return step < freeze_observers_.step_of(total_steps_);
}

std::vector<int64_t> BitSchedule::boundaries() const {
  std::vector<int64_t> first{0};
  for (size_t stage = 0; stage + 1 < stages_.size(); ++stage)
    first.push_back(stages_[stage].until.step_of(total_steps_));
  return first;
}

}  // namespace qat
