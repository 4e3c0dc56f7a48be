#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "qat/error.h"
#include "qat/nn/kv_cache.h"
#include "qat/recipe/initialize.h"
#include "qat/spec.h"

namespace qat {

// A place in a recipe; line and column count from 1.
struct Place {
  int line = 1;
  int column = 1;
};

struct Problem {
  Place place;
  std::string text;  // "schedule[1].weight must be ..., but is ..."
};

// Every problem of a recipe, one "file:line:column: sentence" a line.
class RecipeError : public ErrorAs<std::runtime_error> {
 public:
  RecipeError(const std::string& file, std::vector<Problem> problems);
  const std::vector<Problem>& problems() const { return problems_; }

 private:
  std::vector<Problem> problems_;
};

// A point of the run: a share of its steps, or a step.
struct Bound {
  bool is_percent = true;
  double value = 100.0;

  int64_t step_of(int64_t total_steps) const;
  bool operator==(const Bound& other) const = default;
};

// Bits of one rung of a ladder: kFloat leaves the tensor alone, kTarget takes the layer's own
// width.
constexpr int kFloat = 0;
constexpr int kTarget = -1;

struct Stage {
  Bound until;
  int weight_bits = kTarget;
  int input_bits = kTarget;
  Place place;
};

// What a rule says of one tensor of the layers it matches.
struct Choice {
  bool given = false;
  std::optional<QuantSpec> spec;  // none: leave it in floating point
};

struct Rule {
  std::string match;  // a glob on module names, "re:<regex>" or "type:<class>"
  Choice weight;
  Choice input;
  Place place;
};

// A small Llama that the run trains by itself before it quantizes it.
struct ScratchModel {
  int64_t hidden_size = 256;
  int64_t intermediate_size = 704;
  int64_t layers = 6;
  int64_t heads = 8;
  int64_t kv_heads = 4;
  int64_t vocabulary = 4096;
  int64_t steps = 400;
  int64_t batch_size = 8;
  int64_t sequence_length = 256;
  double learning_rate = 2e-3;
};

struct ModelSection {
  // A folder, a hub id or "module:function"; empty when `scratch` is given or --model will say.
  std::string path;
  std::string kind = "causal_lm";  // what it is for: also classifier, sentence_encoder
  std::string dtype = "float32";
  std::optional<ScratchModel> scratch;
};

struct Samples {
  int64_t samples = 64;
  int64_t sequence_length = 256;
};

struct DataSection {
  // A file or folder of text or jsonl, "python-stdlib" or, for a classifier, "module:function";
  // empty: --data says.
  std::string train;
  std::string evaluation_path;  // empty: held out from `train`
  Samples calibration;
  Samples evaluation;
};

// Low-rank adapters, added to the weights before they are quantized.
struct LoraSection {
  int64_t rank = 16;
  double alpha = 32.0;  // the adapters' product is multiplied by alpha / rank
};

// What is done about weights whose codes keep moving to and fro, numerics.md (31), (32).
struct OscillationSection {
  std::string method = "none";  // or dampen, freeze
  double dampening = 0.02;      // dampen: share of the way to the nearest level, at the end
  double threshold = 0.02;      // freeze: moves back per step
};

struct TrainSection {
  int64_t steps = 300;
  int64_t batch_size = 8;
  int64_t sequence_length = 256;
  int64_t gradient_accumulation = 1;
  double learning_rate = 2e-4;
  double scale_learning_rate = 1e-4;
  double weight_decay = 0.0;
  double gradient_clip = 1.0;
  std::string learning_rate_decay = "cosine";
  Bound warmup{true, 5.0};
  Bound freeze_observers{true, 80.0};
  int64_t checkpoint_every = 50;
  int64_t seed = 0;
  std::string parameters = "all";  // or scales: the codes stay as they are; or lora
  LoraSection lora;
  OscillationSection oscillation;
  bool gradient_checkpointing = false;
  bool compile = false;                  // by torch.compile
  std::string mixed_precision = "none";  // or bfloat16: products in it, weights stay in float32
  std::string strategy = "ddp";          // of several processes; or fsdp: each holds a part
  bool cpu_offload = false;              // fsdp: parts and optimizer states stay with the host
  std::string non_finite = "stop";       // or skip: batches whose loss or gradient is not finite
  std::string weight_cache = "none";     // none, codes or weights (weight_cache.h)
  int64_t validate_every = 25;           // steps between two measurements of held-out KL; 0: never
  bool monitor = true;       // look at clipping, oscillation and scales after every step
  bool tensorboard = false;  // write every step's figures for TensorBoard as well
  bool control = false;      // also fine-tune the float model for as long, and report it
};

struct DistillSection {
  std::string teacher = "original";
  std::string loss = "forward_kl";  // or cross_entropy; cosine for a sentence_encoder
  double temperature = 1.0;
  double weight = 1.0;  // of the distillation loss; the rest is cross-entropy
};

struct EvaluateSection {
  std::vector<std::string> metrics{"perplexity", "kl", "top1_agreement"};
  std::vector<int> compare;  // bit-widths to round to without training, for comparison
  bool sensitivity = false;  // also measure every layer alone, at its width and at 8 bits
  std::string task;  // a jsonl file of the user's own task, or "module:function"; empty: none
  std::optional<double> accept_kl;
  std::optional<double> accept_perplexity_ratio;
  std::optional<double> accept_cosine;     // to the float model's embeddings
  std::optional<double> accept_task_drop;  // in the task's score, of which 1 is the best
};

struct Recipe {
  std::string file;
  std::string text;
  int64_t version = 1;
  std::string mode = "recipe";        // or auto: whatever is the first to meet `accept` and `size`
  double size_bits_per_weight = 5.0;  // the budget of mode auto
  std::string engine;                 // where mode auto measures what it exports; empty: nowhere
  ModelSection model;
  DataSection data;
  std::vector<Rule> layers;
  std::optional<KvCacheSpec> kv_cache;
  Initialize initialize;
  std::vector<Stage> schedule;
  TrainSection train;
  DistillSection distill;
  EvaluateSection evaluate;
  std::vector<std::string> exports;  // the key `export`
};

// Both throw RecipeError with every problem at once. `file` names the text in messages.
Recipe load_recipe(const std::string& path);
Recipe parse_recipe(const std::string& text, const std::string& file);

}  // namespace qat
