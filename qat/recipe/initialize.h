#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/solvers/gptq.h"
#include "qat/solvers/scale_search.h"

namespace qat {

// What is done to a weight before it is rounded.
enum class Transform { hadamard, smoothquant, awq };

// How the codes of a weight are chosen.
//
//           scales                                   codes
//   rtn     of the range                             nearest
//   mse     of the least squared error               nearest
//   clip    of the least error of the output (AWQ)   nearest
//   gptq    searched for as scale_search says        column by column (gptq.h)
enum class Rounding { rtn, mse, clip, gptq };

// What GPTQ makes least.
enum class Objective {
  automatic,  // "auto": model where its gradients can be had, else layer
  layer,      // the error of each layer's output
  model       // what that error does to the model's output; gptq.h, output_hessian
};

// How training a block may change the codes of its weights.
enum class BlockRounding {
  free,      // "weights": weights move anywhere, by Adam
  half_step  // "signed": within half a step of where they are, by the gradient's sign (AutoRound)
};

// Training one transformer block after the other to give what the float block gives.
struct QAT_API BlockTraining {
  int64_t steps = 0;  // optimizer steps per block; 0: none
  int64_t batch_size = 8;
  double learning_rate = 1e-2;        // of weights, in units of their layer's mean scale
  double scale_learning_rate = 1e-3;  // relative to the size of a layer's scales
  BlockRounding rounding = BlockRounding::free;
};

// The recipe's section `initialize`: what happens to weights before training, or instead of it.
struct QAT_API Initialize {
  std::string method = "mse";         // as the recipe spells it, such as "smoothquant+gptq"
  std::vector<Transform> transforms;  // in the order of the method
  Rounding rounding = Rounding::mse;
  double damping = 0.01;  // gptq.h
  int64_t block_size = 128;
  ColumnOrder order = ColumnOrder::group;
  ScaleSearch scale_search = ScaleSearch::mse;
  double correction = 0.5;
  int64_t sweeps = 4;  // gptq.h
  Objective objective = Objective::automatic;
  double smoothing = 0.5;  // the power alpha of SmoothQuant
  bool sequential = true;  // each group of layers sees those before it in their block quantized
  BlockTraining block_training;
  int64_t rotation_size = 0;  // features that hadamard rotates together; 0: all of them

  // The search for scales that are not chosen together with codes.
  ScaleSearch search() const;
  // Whether codes are chosen together with scales, which must then stay as they are.
  bool keeps_scales() const;
  // Whether GPTQ is asked, or allowed, to weigh errors by the model's output. Scales of AWQ and
  // SmoothQuant change what layers give, and so what their gradients are; training blocks, unless
  // asked otherwise, begins where their own outputs are nearest.
  bool weighs_outputs() const;
  // Whether calibration data is needed.
  bool needs_data() const;
};

// Names as recipes spell them; the parsers throw InvalidArgument with the allowed ones.
QAT_API const char* name_of(Transform transform);
QAT_API const char* name_of(Rounding rounding);
const NameTable<Objective>& objectives();
QAT_API const char* name_of(Objective objective);
QAT_API Objective parse_objective(const std::string& name);
const NameTable<BlockRounding>& block_roundings();
QAT_API const char* name_of(BlockRounding rounding);
QAT_API BlockRounding parse_block_rounding(const std::string& name);

// Reads "awq", "hadamard+gptq" and the like into transforms and rounding. Returns a rule that is
// broken, or nothing.
QAT_API std::string parse_method(const std::string& method, Initialize* into);

}  // namespace qat
