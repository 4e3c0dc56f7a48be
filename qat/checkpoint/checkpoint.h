#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/checkpoint/safetensors.h"
#include "qat/ops/api.h"

namespace qat {

// A quantized model on disk, for programs without Python.
struct QAT_API Checkpoint {
  std::vector<QuantizedWeights> layers;
  NamedTensors others;  // everything that is not quantized, by its name in the model
};

// Writes the folder: model.safetensors, and config.json with the `quantization_config` of `format`,
// one of those that are laid out as folders (qat/checkpoint/formats/format.h). `ignore` names
// linear layers that stay in floating point. A checkpoint that is there is replaced as a whole, or
// not at all; files that are not of a checkpoint, such as a tokenizer's, stay. Throws
// std::invalid_argument when the format cannot hold a layer or two tensors have one name, FileError
// when the folder cannot be written.
QAT_API void save_checkpoint(const std::filesystem::path& folder, const Checkpoint& checkpoint,
                             const std::string& format = "safetensors",
                             const std::vector<std::string>& ignore = {});

// Reads a folder of the format "safetensors", in one file or several. Throws FileError, naming the
// file or the tensor, for one that is missing, that two files have, that the index of the files has
// elsewhere, of another shape or dtype, or with codes that its grid does not have.
QAT_API Checkpoint load_checkpoint(const std::filesystem::path& folder);

}  // namespace qat
