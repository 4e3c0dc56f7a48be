#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qat {

class YamlSection;

// Training one transformer block after the other to give what the float block gives.
struct BlockTraining {
  int64_t steps = 0;  // optimizer steps per block; 0: none
  int64_t batch_size = 8;
  double learning_rate = 1e-2;        // of weights, in units of their layer's mean scale
  double scale_learning_rate = 1e-3;  // relative to the size of a layer's scales
  std::string rounding =
      "weights";  // weights: they move freely, by Adam; signed: within half a step
                  // of where they are, by the sign of the gradient (AutoRound)
};

// The recipe's section `initialize`: what happens to weights before training, or instead of it.
struct Initialize {
  std::string method = "mse";  // as the recipe spells it, such as "smoothquant+gptq"
  std::vector<std::string>
      transforms;                // of hadamard, smoothquant and awq, in the order of the method
  std::string rounding = "mse";  // rtn, mse, clip (AWQ's) or gptq
  double damping = 0.01;         // gptq.h
  int64_t block_size = 128;
  std::string order = "group";
  std::string scale_search = "mse";
  double correction = 0.5;
  double smoothing = 0.5;  // the power alpha of SmoothQuant
  bool sequential = true;  // each group of layers sees those before it in their block quantized
  BlockTraining block_training;

  // Whether codes are chosen together with scales, which must then stay as they are.
  bool keeps_scales() const;
  // Whether calibration data is needed.
  bool needs_data() const;
};

// Reads "awq", "hadamard+gptq" and the like into transforms and rounding. Returns a rule that is
// broken, or nothing.
std::string parse_method(const std::string& method, Initialize* into);

Initialize read_initialize(YamlSection section);

}  // namespace qat
