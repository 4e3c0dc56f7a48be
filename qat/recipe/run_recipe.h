#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "qat/ops/api.h"
#include "qat/recipe/recipe.h"

namespace qat {

// A small Llama that the run trains by itself before it quantizes it.
struct QAT_API ScratchModel {
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

struct QAT_API ModelSection {
  // A folder, a hub id or "module:function"; empty when `scratch` is given or --model will say.
  std::string path;
  std::string kind = "causal_lm";  // what it is for: also classifier, sentence_encoder, seq2seq
  std::string dtype = "float32";
  std::optional<ScratchModel> scratch;
};

struct QAT_API Samples {
  int64_t samples = 64;
  int64_t sequence_length = 256;
};

// One of several places that data come from, or a data set of which only a part is wanted.
struct QAT_API DataSource {
  std::string path;    // as DataSection::train
  std::string subset;  // of a data set of the hub that has several
  std::string split = "train";
  std::string column = "text";  // of a table, where its rows are no conversations
  double weight = 1.0;          // how often it is drawn from, relative to the others
};

struct QAT_API DataSection {
  // A file or folder of text, jsonl or Parquet, a data set of the hub, "python-stdlib" or, for a
  // classifier, "module:function"; empty: `sources` or --data says.
  std::string train;
  std::vector<DataSource> sources;  // where `train` is a map or a list of maps
  std::string loss_on = "answers";  // or all: which tokens of conversations are learned
  bool packing = false;             // conversations one after another in a row, in place of padding
  std::string evaluation_path;      // empty: held out from `train`
  Samples calibration;
  Samples evaluation;
};

// Low-rank adapters, added to the weights before they are quantized.
struct QAT_API LoraSection {
  int64_t rank = 16;
  double alpha = 32.0;  // the adapters' product is multiplied by alpha / rank
};

// What is done about weights whose codes oscillate between two levels, numerics.md (31), (32).
struct QAT_API OscillationSection {
  std::string method = "none";  // or dampen, freeze
  double dampening = 0.02;      // dampen: share of the way to the nearest level, at the end
  double threshold = 0.02;      // freeze: moves back per step
};

struct QAT_API TrainSection : Training {
  std::optional<double> epochs;     // in place of `steps`, which they decide once data are read
  std::string optimizer = "adamw";  // or adamw_8bit, muon, sgd, "module:function"
  std::string masters = "float32";  // of weights in fewer bits; or model: the weights themselves
  int64_t batch_size = 8;
  int64_t sequence_length = 256;
  int64_t gradient_accumulation = 1;
  // Of weights; none: that of a quantized one is relative to the distance between its levels.
  std::optional<double> learning_rate;
  double relative_learning_rate = 2e-3;
  double scale_learning_rate = 3e-4;
  double weight_decay = 0.0;
  double gradient_clip = 1.0;
  std::string learning_rate_decay = "cosine";
  Bound warmup{true, 5.0};
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
  std::string weight_cache = "auto";     // or none, codes, weights (weight_cache.h)
  int64_t validate_every = 25;           // steps between two measurements of held-out KL; 0: never
  bool monitor = true;       // look at clipping, oscillation and scales after every step
  bool tensorboard = false;  // write every step's figures for TensorBoard as well
  bool control = false;      // also fine-tune the float model for as long, and report it
};

struct QAT_API DistillSection {
  std::string teacher = "original";  // or the folder that `torchqat teacher` wrote
  std::string loss = "forward_kl";   // or cross_entropy; cosine for a sentence_encoder
  double temperature = 1.0;
  double weight = 1.0;  // of the distillation loss; the rest is cross-entropy
};

struct QAT_API EvaluateSection {
  std::vector<int> compare;  // bit-widths to round to without training, for comparison
  bool sensitivity = false;  // also measure every layer alone, at its width and at 8 bits
  std::string task;  // a jsonl file of the user's own task, or "module:function"; empty: none
  std::optional<double> accept_kl;
  std::optional<double> accept_perplexity_ratio;
  std::optional<double> accept_cosine;     // to the float model's embeddings
  std::optional<double> accept_task_drop;  // in the task's score, of which 1 is the best
};

// A whole recipe, as `torchqat run` takes it.
struct QAT_API RunRecipe {
  std::string file;
  std::string text;
  std::string mode = "recipe";        // or auto: whatever is the first to meet `accept` and `size`
  double size_bits_per_weight = 7.5;  // the budget of mode auto, over all that are multiplied
  std::string device = "auto";        // or cpu, cuda, cuda:N; auto: a GPU where there is one
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

  // The part that quantizes.
  Recipe core() const { return {file, text, layers, kv_cache, initialize, schedule, train}; }
};

// As load_recipe and parse_recipe. `settings`, such as "train.steps=300", hold in place of what the
// recipe says: KEY=VALUE, the value in YAML, or none to take the key out. The recipe's text is then
// that with them, and messages about one of them begin with "--set train.steps=300".
QAT_API RunRecipe load_run_recipe(const std::string& path,
                                  const std::vector<std::string>& settings = {});
QAT_API RunRecipe parse_run_recipe(const std::string& text, const std::string& file,
                                   const std::vector<std::string>& settings = {});

}  // namespace qat
