#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include "qat/ops/api.h"
#include "qat/recipe/bit_schedule.h"
#include "qat/recipe/recipe.h"
#include "qat/solvers/scale_search.h"

namespace qat {

// Moves the widths of a prepared module along its recipe's stages: call step() after each
// optimizer.step(). It also rounds the weights anew, which the next forward then uses, so call it
// where a recipe has but one stage, too. When a width drops, scales are derived anew from the
// master weights, and what the optimizer keeps of learned ones, moments and counts of steps, begins
// anew, since it belongs to the old grid.
//
// torch::save and torch::load take it, beside module and optimizer.
class QAT_API Schedule {
 public:
  // Percentages of the recipe refer to `total_steps`. `optimizer`: the one to tell, or null.
  // Both must outlive the schedule. Throws std::invalid_argument when nothing is prepared, or when
  // `total_steps` is negative.
  Schedule(torch::nn::Module& module, const Recipe& recipe, int64_t total_steps,
           torch::optim::Optimizer* optimizer = nullptr);

  // Counts an optimizer step. Returns whether widths changed.
  bool step();
  // Moves to the exported widths, for a run that stopped early.
  void finish();

  int64_t current_step() const { return step_; }
  int64_t total_steps() const { return bits_.total_steps(); }
  // Index of the stage in force.
  int64_t stage() const { return bits_.stage_at(step_); }
  const BitSchedule& bits() const { return bits_; }

  void save(torch::serialize::OutputArchive& archive) const;
  // Goes to the step that was saved; the scales of that step are the module's, which is loaded
  // before. Throws std::invalid_argument for a run of another length.
  void load(torch::serialize::InputArchive& archive);

 private:
  void apply(ScaleSearch search, bool derive = true);

  torch::nn::Module& module_;
  BitSchedule bits_;
  torch::optim::Optimizer* optimizer_;
  int64_t step_ = 0;
};

// For torch::save and torch::load.
QAT_API torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                                    const Schedule& schedule);
QAT_API torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                   Schedule& schedule);

}  // namespace qat
