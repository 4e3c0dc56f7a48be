#include <string>
#include <utility>
#include <vector>

#include "qat/recipe/key_log.h"

namespace qat {
namespace {

// In the order of recipes. A test sees to it that each key has a meaning, and each meaning a key.
const std::vector<std::pair<const char*, const char*>>& meanings() {
  static const std::vector<std::pair<const char*, const char*>> kMeanings{
      {"version", "Of this file format."},
      {"mode",
       "recipe: what the recipe says. auto: the first of several ways that meets evaluate.accept "
       "and size."},
      {"size", "Mode auto: the budget."},
      {"size.bits_per_weight",
       "Bits that a weight may take, scales included, on average over all that are multiplied."},
      {"engine",
       "What serves the export: it is measured there in the end, and what it would not compute is "
       "refused before training. Language models: transformers, vllm, llama.cpp, mlx, openvino, "
       "onnxruntime-genai or executorch; other kinds: transformers or onnxruntime."},
      {"device",
       "auto (a GPU where there is one that torchqat was built for), cpu, cuda or cuda:N; --device "
       "sets it."},
      {"model", "The float model."},
      {"model.path",
       "A Hugging Face folder, a GGUF file, a hub id or, for a classifier, module:function; "
       "--model "
       "sets it."},
      {"model.kind", "What the model is for."},
      {"model.dtype", "What the model trains and is stored in."},
      {"model.scratch",
       "In place of a path: a small Llama that the run trains first, once, and caches."},
      {"model.scratch.hidden_size", "Its width, an even multiple of heads."},
      {"model.scratch.intermediate_size", "Width inside its MLPs."},
      {"model.scratch.layers", "Its blocks."},
      {"model.scratch.heads", "Attention heads."},
      {"model.scratch.kv_heads", "Heads of keys and values; divides heads."},
      {"model.scratch.vocabulary", "Tokens of the tokenizer that is trained for it."},
      {"model.scratch.steps", "Optimizer steps."},
      {"model.scratch.batch_size", "Sequences of a batch."},
      {"model.scratch.sequence_length", "Tokens of a sequence."},
      {"model.scratch.learning_rate", "Of Muon; AdamW has 0.15 of it."},
      {"data", "What is trained on, calibrated on and measured on."},
      {"data.train",
       "Text, jsonl or Parquet files or folders, a data set of the Hub, python-stdlib or, for a "
       "classifier, module:function; --data sets it. Or one map, or a list of maps that are drawn "
       "from by weight."},
      {"data.train.path", "Where this source is."},
      {"data.train.subset", "Of a data set of the Hub that has several."},
      {"data.train.split", "Of a data set of the Hub."},
      {"data.train.column", "Of a table whose rows are no conversations."},
      {"data.train.weight", "How often this source is drawn from, relative to the others."},
      {"data.loss_on", "Which tokens of conversations are learned."},
      {"data.packing",
       "Several conversations in a row, which do not see each other, in place of padding."},
      {"data.calibration", "What ranges, and methods such as GPTQ, look at before training."},
      {"data.calibration.samples", "Sequences or examples."},
      {"data.calibration.sequence_length", "Tokens of a sequence."},
      {"data.evaluation", "What is measured on."},
      {"data.evaluation.path", "Held-out data; without it, every tenth document of data.train."},
      {"data.evaluation.samples", "Sequences or examples."},
      {"data.evaluation.sequence_length", "Tokens of a sequence."},
      {"layers",
       "Which layers are quantized, and how: a list of rules, of which later ones win, tensor by "
       "tensor; or one map, a rule for the repeated blocks."},
      {"layers.match",
       "blocks (the repeated blocks of the model), a glob on names of modules, re: and a regular "
       "expression, or type: and a class. In the list it must be given."},
      {"layers.weight", "The weight of these layers; float leaves it as it is."},
      {"layers.weight.dtype",
       "What is exported: an integer, a float, or a name that brings groups and scales of its own "
       "(nvfp4, mxfp4 and the like, q4_k and the like)."},
      {"layers.weight.mix",
       "In place of dtype: one of llama.cpp's mixes, which gives each layer a type by what it is."},
      {"layers.weight.symmetric", "Integers: false has an integer zero point."},
      {"layers.weight.grid", "Symmetric integers: which levels (docs/numerics.md)."},
      {"layers.weight.scale",
       "minmax: found in every forward. absmean: likewise, the mean magnitude, for weights of -1, "
       "0 and 1. mse: searched once. learned: trained. mse is the default "
       "where initialize chooses codes together with scales, or mode is auto."},
      {"layers.weight.scale_dtype",
       "The scale is rounded to it before it is used. By default e8m0_floor, a power of two, for "
       "mxfp4 and the like, else bfloat16."},
      {"layers.weight.outer_scale", "With scale_dtype e4m3: scales are codes times another scale."},
      {"layers.weight.outer_scale.dtype", "What the outer scale is stored in."},
      {"layers.weight.outer_scale.group_size",
       "Columns that share it; the whole weight if not given."},
      {"layers.weight.granularity",
       "What shares a scale. By default group where group_size is given, block where block is, "
       "else channel."},
      {"layers.weight.group_size", "Columns that share a scale."},
      {"layers.weight.block", "Rows and columns that share a scale, such as [128, 128]."},
      {"layers.input", "What enters these layers; float leaves it as it is."},
      {"layers.input.dtype", "As of a weight, but for names of K-quants."},
      {"layers.input.symmetric", "Integers: false has an integer zero point."},
      {"layers.input.grid", "Symmetric integers: which levels (docs/numerics.md)."},
      {"layers.input.scale", "Of inputs that are not dynamic; as of a weight."},
      {"layers.input.scale_dtype",
       "The scale is rounded to it before it is used. By default e8m0_floor, a power of two, for "
       "mxfp4 and the like, else float32."},
      {"layers.input.outer_scale", "With scale_dtype e4m3: scales are codes times another scale."},
      {"layers.input.outer_scale.dtype", "What the outer scale is stored in."},
      {"layers.input.outer_scale.group_size", "Features that share it; all if not given."},
      {"layers.input.granularity",
       "What shares a scale: a token, a group of its features, or all (tensor). By default group "
       "where group_size is given, else token."},
      {"layers.input.group_size", "Features that share a scale."},
      {"layers.input.dynamic",
       "A scale for every call; false is calibrated. By default false for granularity tensor and "
       "for nvfp4's outer scale, else true."},
      {"layers.input.observer",
       "Not dynamic: how the range is found. minmax and moving_average follow training. By default "
       "mse where scale is mse or learned."},
      {"layers.input.percentile",
       "Observer percentile: of magnitudes, or of each side when symmetric is false."},
      {"layers.input.averaging_constant", "Observer moving_average: share of each batch."},
      {"layers.allow_float",
       "Matrices that the rule reaches and torchqat cannot quantize stay in floating point, which "
       "else is an error."},
      {"kv_cache",
       "Quantizes the cache of keys (after the rotary embedding) and values, in training as in "
       "serving."},
      {"kv_cache.dtype", "Of keys and values."},
      {"kv_cache.symmetric",
       "Integers: false has levels from the smallest element of each block up."},
      {"kv_cache.scale_dtype", "mxfp4 and the like: by which rule a power of two is found."},
      {"kv_cache.calibrated",
       "nvfp4: the outer scale is fixed on calibration data; else each call finds it."},
      {"kv_cache.keys",
       "What shares a scale. tensor and head are calibrated. FP8 has tensor by default, integers "
       "channel."},
      {"kv_cache.values",
       "What shares a scale. tensor and head are calibrated. FP8 has tensor by default, integers "
       "token."},
      {"kv_cache.group_size", "group: channels that share a scale; channel: tokens that do."},
      {"kv_cache.observer", "tensor and head: how the range is found, as of an input."},
      {"kv_cache.percentile", "Observer percentile: of magnitudes."},
      {"kv_cache.averaging_constant", "Observer moving_average: share of each batch."},
      {"kv_cache.recent", "Latest tokens that each query reads unquantized."},
      {"kv_cache.first", "Tokens at the beginning that stay unquantized."},
      {"initialize",
       "Post-training quantization: what happens to weights before training, or instead of it."},
      {"initialize.method",
       "rtn, mse, gptq or awq, also after hadamard+, smoothquant+ or awq+, such as awq+gptq."},
      {"initialize.damping", "gptq: share of the Hessian's mean diagonal that is added to it."},
      {"initialize.block_size", "gptq: columns between two updates of the rest."},
      {"initialize.sweeps",
       "gptq: passes that follow, in which each code is put where the error is least while all "
       "others stay."},
      {"initialize.order", "gptq: in which order columns are rounded (docs/numerics.md)."},
      {"initialize.scale_search", "gptq: how scales of groups are found."},
      {"initialize.correction",
       "gptq: share of the quantized model's drift from the float one that is made good."},
      {"initialize.objective",
       "gptq: what is made least, the error of each layer's output (layer) or what it does to the "
       "model's (model); auto is model where gradients can be had, so not when streamed, after "
       "awq+ "
       "or smoothquant+, or before block_training, and not for weights of 2 bits."},
      {"initialize.smoothing",
       "smoothquant: 0 leaves outliers in the inputs, 1 moves all of them into the weights."},
      {"initialize.rotation_size",
       "hadamard: features that are rotated together; 0 rotates all of them."},
      {"initialize.sequential",
       "Each group of layers is calibrated on what those before it give once quantized."},
      {"initialize.block_training",
       "Trains one block after the other to give what the float block gives."},
      {"initialize.block_training.steps", "Optimizer steps for each block; 0 is none."},
      {"initialize.block_training.batch_size", "Sequences of a batch."},
      {"initialize.block_training.learning_rate", "In units of a layer's mean scale."},
      {"initialize.block_training.scale_learning_rate",
       "Relative to the size of a layer's scales."},
      {"initialize.block_training.rounding",
       "weights: they move freely, by Adam. signed: within half a step, by the gradient's sign."},
      {"schedule", "Widths over the run; the last stage is what is exported."},
      {"schedule.until", "Where the stage ends."},
      {"schedule.weight",
       "Width of weights in this stage; float does not round. If not given, what is exported."},
      {"schedule.input",
       "Width of inputs in this stage; float does not round. If not given, what is exported."},
      {"train", "The fine-tuning."},
      {"train.steps", "Optimizer steps; 0 trains nothing. --steps sets it."},
      {"train.epochs", "In place of steps: passes over the data."},
      {"train.optimizer",
       "adamw, adamw_8bit (bitsandbytes), muon (matrices in blocks; AdamW the rest), sgd (momentum "
       "0.9), or module:function, which makes one."},
      {"train.masters",
       "Of 16-bit models: float32 trains numbers that are rounded to their weights, model the "
       "weights themselves."},
      {"train.batch_size", "Sequences or examples of a batch."},
      {"train.sequence_length", "Tokens of a sequence."},
      {"train.gradient_accumulation", "Batches of batch_size in a step."},
      {"train.learning_rate",
       "Of weights, by AdamW, and by muon, whose steps are as large; without it "
       "relative_learning_rate holds."},
      {"train.relative_learning_rate",
       "Of quantized weights, in units of the distance between two levels, so that it suits every "
       "model and width; less where a step has few tokens for each weight (docs/numerics.md, 38). "
       "What is not quantized moves by the mean of these rates."},
      {"train.scale_learning_rate", "Relative to the size of a layer's scales."},
      {"train.weight_decay", "Of matrices; scales never decay."},
      {"train.gradient_clip", "Norm that gradients are cut to; 0 is off."},
      {"train.learning_rate_decay", "How the learning rate ends."},
      {"train.warmup", "Until when the learning rate rises."},
      {"train.freeze_observers", "Until when calibrated ranges of inputs follow the data."},
      {"train.checkpoint_every", "Steps; --resume goes on from the last one."},
      {"train.seed", "Of the order of the data."},
      {"train.parameters",
       "What trains: all; scales, while codes stay as they are; or lora, adapters (peft)."},
      {"train.lora", "With parameters lora: adapters, added to weights before they are rounded."},
      {"train.lora.rank", "Of the adapters."},
      {"train.lora.alpha", "The adapters' product is multiplied by alpha / rank."},
      {"train.oscillation", "What is done about codes that keep moving to and fro."},
      {"train.oscillation.method",
       "dampen draws weights to their levels; freeze holds those that oscillate."},
      {"train.oscillation.dampening",
       "dampen: share of the way in each step, at the end of training."},
      {"train.oscillation.threshold", "freeze: moves back for each step from which on."},
      {"train.gradient_checkpointing", "Less memory for one more forward."},
      {"train.compile", "By torch.compile, once for every width of the schedule."},
      {"train.mixed_precision",
       "bfloat16: products in it, while weights, from which codes are rounded, stay in float32."},
      {"train.non_finite",
       "A loss or gradient that is no number: stop, or skip the batch (up to 10 in a row)."},
      {"train.weight_cache",
       "What is kept of rounded weights over a step; auto keeps weights on a GPU with room."},
      {"train.validate_every",
       "Steps between two looks at the held-out KL, whose best state is exported; 0 never looks."},
      {"train.strategy", "Of the processes that torchrun starts; with fsdp each holds a part."},
      {"train.cpu_offload", "fsdp: parts and optimizer states stay in the host's memory."},
      {"train.monitor",
       "metrics.jsonl has shares of weights that are clipped, move or oscillate, and the change of "
       "scales. By default true unless strategy is fsdp."},
      {"train.tensorboard", "The same figures for TensorBoard, in the run's folder."},
      {"train.control", "Also fine-tune the float model for as long, and report it."},
      {"distill", "What is learned from the float model."},
      {"distill.teacher",
       "original, the float model in memory, or a folder of answers that torchqat teacher wrote."},
      {"distill.loss",
       "forward_kl to what the float model says, or cross_entropy to the data; a sentence_encoder "
       "has cosine."},
      {"distill.temperature", "Both distributions are softened by it."},
      {"distill.weight", "Of the distillation loss; the rest is cross-entropy."},
      {"evaluate", "What is measured beside perplexity, KL and top-1 agreement."},
      {"evaluate.compare",
       "Widths to which weights are also rounded without training, for comparison."},
      {"evaluate.accept", "Limits that the report answers to, and that mode auto decides by."},
      {"evaluate.accept.kl", "To the float model, in nats a token."},
      {"evaluate.accept.task_drop", "In the task's score, of which 1 is the best."},
      {"evaluate.accept.perplexity_ratio", "To the float model's."},
      {"evaluate.accept.cosine", "A sentence_encoder: mean to the float model's vectors."},
      {"evaluate.sensitivity",
       "Also measure KL with each layer alone quantized, for the report's heat map."},
      {"evaluate.task",
       "Your own: a jsonl file, module:function, which scores a model, or lm-eval:NAME."},
      {"export", "The formats to write (docs/formats.md); the first is measured."},
  };
  return kMeanings;
}

}  // namespace

std::string meaning_of(const std::string& path) {
  for (const auto& [known, meaning] : meanings())
    if (path == known) return meaning;
  return "";
}

std::vector<std::string> explained_keys() {
  std::vector<std::string> keys;
  for (const auto& entry : meanings()) keys.emplace_back(entry.first);
  return keys;
}

}  // namespace qat
