#pragma once

#include <torch/nn/module.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/ops/api.h"

namespace qat {

struct QAT_API ExportOptions {
  // One that is laid out as a folder; programs read "safetensors" back, and so does Python.
  std::string format = "safetensors";
  // Of scales and of what is not quantized; by default that of each weight.
  std::optional<at::ScalarType> dtype = std::nullopt;
};

// Writes a prepared module (or one of PackedLinear layers), on any device, as a checkpoint: its
// quantized weights, and every other parameter and buffer under its name. Folders are those of
// save_checkpoint (checkpoint.h): model.safetensors and config.json, replaced whole or not at all.
// Throws std::invalid_argument when nothing is quantized, for what convert() refuses and for layers
// that the format cannot hold; FileError when the folder cannot be written.
//
//   qat::export_folder(net, "out", {.format = "compressed-tensors", .dtype = at::kBFloat16});
QAT_API void export_folder(const torch::nn::Module& module, const std::filesystem::path& folder,
                           const ExportOptions& options = {});

[[deprecated("export_folder(module, folder, {.format = ..., .dtype = ...}) does the same.")]]
inline void export_safetensors(const torch::nn::Module& module, const std::filesystem::path& folder,
                               std::optional<at::ScalarType> dtype = std::nullopt,
                               const std::string& format = "safetensors") {
  export_folder(module, folder, {.format = format, .dtype = dtype});
}

// Fills a module, on any device, from such a folder of the format "safetensors". A quantized layer
// of the checkpoint may be a PackedLinear, which keeps its weight packed, or a layer of torch::nn,
// which gets the dequantized weight; one whose input is quantized too, a PackedLinear or a drop-in
// of layers.h. Throws FileError for a folder that is damaged, std::invalid_argument, naming the
// tensor, where module and checkpoint do not fit; nothing is changed then.
QAT_API void load(torch::nn::Module& module, const std::filesystem::path& folder);

// What verify() found.
struct QAT_API Verification {
  int64_t layers = 0;                    // quantized ones that were compared
  std::vector<std::string> differences;  // one sentence each, naming the tensor

  bool equal() const { return differences.empty(); }
};

// Compares a folder with the module that it should hold, bit by bit: codes, scales and zero points
// of prepared and packed layers, dequantized weights of others, and every other tensor.
QAT_API Verification verify(const torch::nn::Module& module, const std::filesystem::path& folder);

}  // namespace qat
