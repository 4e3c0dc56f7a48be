#pragma once

#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/kv_cache.h"
#include "qat/safetensors.h"

namespace qat {

// A checkpoint as vLLM and transformers read it: tensors, and the JSON text of
// `quantization_config`.
struct CompressedTensors {
  NamedTensors tensors;
  std::string quantization_config;
};

// Writes the layers in the compressed-tensors format:
//
//   weights only           pack-quantized: weight_packed int32, weight_scale, weight_shape and, on
//   an
//                          asymmetric grid, weight_zero_point packed along the output axis
//   int8 weights and inputs  int-quantized: weight int8, weight_scale, and input_scale (and
//                          input_zero_point) when the input is calibrated
//
// Codes of 3 bits are stored in 4, those of 5 to 7 in 8. `ignore` lists the linear layers that stay
// in floating point. Throws std::invalid_argument, naming the layer, for a spec that the format has
// no place for.
//
// `kv_cache`: how the cache of keys and values is quantized, where it is; see holds_kv_cache.
CompressedTensors to_compressed_tensors(const std::vector<QuantizedWeights>& layers,
                                        const std::vector<std::string>& ignore,
                                        const std::optional<KvCacheSpec>& kv_cache = {});

// The two halves of it, for checkpoints that are written layer by layer: the tensors of one layer,
// and the configuration of all, of which only names and specs are read.
NamedTensors compressed_tensors_of(const QuantizedWeights& layer);
std::string compressed_tensors_config(const std::vector<QuantizedWeights>& layers,
                                      const std::vector<std::string>& ignore,
                                      const std::optional<KvCacheSpec>& kv_cache = {});

// Whether a checkpoint can tell engines of this cache: FP8 E4M3 with a scale per tensor or per
// head, k_scale and v_scale beside each attention layer. Others are settings of the engine.
bool holds_kv_cache(const KvCacheSpec& spec);

// Problems that engines would meet: layers that they fuse (q, k and v; gate and up) but whose
// schemes differ. Empty when there are none.
std::vector<std::string> fusion_problems(const std::vector<QuantizedWeights>& layers,
                                         const std::vector<std::string>& ignore);

}  // namespace qat
