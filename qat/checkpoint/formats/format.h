#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/checkpoint/safetensors.h"
#include "qat/ops/api.h"
#include "qat/recipe/kv_cache_spec.h"
#include "qat/recipe/plan.h"

namespace qat {

// JSON texts by the file that they are for; that of "config.json" is its `quantization_config`.
using Documents = std::map<std::string, std::string>;

// What a format's documents are made from: names, shapes and specs, but no tensors.
struct QAT_API CheckpointPlan {
  std::vector<LayerPlan> layers;        // the quantized ones
  std::vector<std::string> ignore;      // linear layers that stay in floating point
  std::optional<KvCacheSpec> kv_cache;  // of every attention layer
};

// `count` codes of stored_bits() (artifact.h), one after the other.
int64_t row_of_stored_bits(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                           int64_t count);

// A checkpoint format: which layers it can hold, and how it writes them.
struct QAT_API Format {
  const char* name;
  const char* used_by;                   // for people
  std::vector<std::string> layer_types;  // that it has a place for
  // Why it cannot hold a layer of these types, in words that follow "because"; empty when it can.
  std::string (*scheme_refusal)(const LayerPlan& layer);
  // The tensors of one layer, wherever it is, under the names of the checkpoint. GGUF and ONNX are
  // containers of their own, written in Python; for them this gives the one tensor that they embed.
  NamedTensors (*tensors)(const QuantizedWeights& layer);
  // Throws std::invalid_argument when layers that each fit do not fit together.
  Documents (*documents)(const CheckpointPlan& plan);
  // float16 when scales, and all that is not quantized, must be stored in it.
  std::optional<at::ScalarType> dtype = std::nullopt;
  // Engines that load it make one matrix of q, k and v, and of gate and up.
  bool engines_fuse = false;
  // Number types (recipe/presets.h) beside integers and FP8 under scales that are numbers.
  std::vector<std::string> number_types = {};
  // Levels of every kind and scales that are codes, too.
  bool holds_every_scheme = false;
  // Bits that so many codes of a row take, as many as there are columns, or zero points; of a layer
  // whose input is quantized so.
  int64_t (*row_bits)(const QuantSpec& weight, const std::optional<QuantSpec>& input,
                      int64_t count) = &row_of_stored_bits;
  // Bits beside the codes of a row of so many columns: scales, of `scale_bits` each where they are
  // numbers, and what shifts them. None where they are as artifact.h counts them.
  int64_t (*grid_bits)(const QuantSpec& weight, int64_t cols, int64_t scale_bits) = nullptr;
  // Bits that the file spends on a weight in a row of so many columns, where its blocks are not those
  // that share a scale; 0 where they are.
  double (*bits_in_blocks)(const QuantSpec& spec, int64_t columns) = nullptr;
};

// Why `format` cannot hold a layer, in words that follow "because"; empty when it can.
QAT_API std::string refusal(const Format& format, const LayerPlan& layer);

// Bits that a checkpoint in `format` spends on a weight, scales and zero points included.
QAT_API double bits_per_weight_in(const Format& format, const QuantizedWeights& layer);

// The same of all of a weight [rows, cols] before it is quantized (size_of_weight, weight_types.h).
QAT_API int64_t size_of_weight_in(const Format& format, const QuantSpec& spec, int64_t rows,
                                  int64_t cols, int64_t scale_bits = 0,
                                  const std::optional<QuantSpec>& input = {});

// Whether levels or scales are of a kind that a format must know: FP4 and FP6, offsets, scales that
// are codes.
bool is_coded(const QuantSpec& spec);

QAT_API const std::vector<Format>& formats();

QAT_API std::vector<std::string> format_names();

// Throws std::invalid_argument with the names that there are.
QAT_API const Format& find_format(const std::string& name);

// Throws std::invalid_argument, naming the layer and the formats that could hold it, when `format`
// cannot; naming both layers, when engines would fuse two whose schemes differ.
QAT_API void check_format(const Format& format, const CheckpointPlan& plan);

// The layer without its tensors.
QAT_API LayerPlan plan_of(const QuantizedWeights& layer);

// Scales or zero points [grid_rows, grid_cols] as one for each `group` columns of each row,
// [out, in / group]; `group` divides the blocks of the layer.
QAT_API at::Tensor per_group(const at::Tensor& grid, const QuantizedWeights& layer, int64_t group);

// The group size as GPTQ's and AWQ's configurations have it: -1 for a scale per output channel.
QAT_API int64_t group_size_of(const QuantSpec& spec);

// Layers that engines fuse but whose schemes differ, one sentence each.
QAT_API std::vector<std::string> fusion_problems(const CheckpointPlan& plan);

// Layers that engines fuse and then round again: where each has one scale for its whole weight,
// engines go on with the largest. A sentence that names the first, empty when there are none.
QAT_API std::string fusion_warning(const CheckpointPlan& plan);

}  // namespace qat
