#include "qat/checkpoint/checkpoint.h"

#include <ATen/Functions.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "qat/ops/checks.h"
#include "qat/ops/pack.h"
#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/plain.h"
#include "qat/checkpoint/formats/spec_json.h"

namespace qat {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json read_config(const fs::path& path) {
  std::ifstream in(path);
  const json config = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("quantization_config"))
    throw FileError(path.string() +
                    " must be the configuration of a quantized checkpoint, but is not.");
  const json& quantization = config["quantization_config"];
  if (!quantization.is_object())
    throw FileError(path.string() + " must describe the quantization by an object, but does not.");
  const json method = quantization.value("quant_method", json());
  if (method != "torchqat")
    throw FileError(path.string() +
                    " must be of the format safetensors, whose quant_method is "
                    "torchqat, but is of " +
                    method.dump() + ".");
  const json version = quantization.value("version", json());
  if (version != kPlainVersion)
    throw FileError(path.string() + " must have version " + std::to_string(kPlainVersion) +
                    ", which this torchqat reads, but has " + version.dump() + ".");
  return quantization;
}

NamedTensors read_tensors(const fs::path& folder) {
  std::set<fs::path> files;
  if (fs::is_directory(folder))
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".safetensors") files.insert(entry.path());
  if (files.empty())
    throw FileError(folder.string() + " must hold safetensors files, but has none.");
  NamedTensors tensors;
  for (const fs::path& file : files) tensors.merge(load_safetensors(file.string()));
  return tensors;
}

// Takes tensors of one layer out of those of the checkpoint, and checks them.
class LayerReader {
 public:
  LayerReader(const fs::path& folder, std::string name, NamedTensors& tensors)
      : folder_(folder.string()), name_(std::move(name)), tensors_(tensors) {}

  QuantizedWeights read(const json& entry) {
    if (!entry.is_object())
      throw FileError(folder_ + ": " + name_ + " must be described by an object, but is not.");
    QuantizedWeights layer;
    layer.name = name_;
    layer.weight = spec_of(entry, "weight");
    if (entry.contains("input")) layer.input = spec_of(entry, "input");
    const json shape = entry.value("shape", json());
    if (!shape.is_array() || shape.size() != 2 || !shape[0].is_number_unsigned() ||
        !shape[1].is_number_unsigned())
      refuse("shape", "must be [out, in]");
    const int64_t rows = shape[0], cols = shape[1];
    layer.codes = codes(layer.weight, rows, cols);
    layer.scale = take("scale");
    const int64_t blocks = block_count(layer.weight, rows, cols);
    if (layer.scale.dim() != 2 || layer.scale.numel() != blocks ||
        layer.scale.size(0) != block_count(layer.weight, rows, 1))
      refuse("scale", "must have " + std::to_string(blocks) + " elements");
    if (!is_scale_dtype(layer.scale.scalar_type()))
      refuse("scale", "must be float32, float16 or bfloat16");
    if (!layer.weight.symmetric()) {
      layer.zero_point = take("zero_point");
      if (layer.zero_point->sizes() != layer.scale.sizes() ||
          layer.zero_point->scalar_type() != at::kChar)
        refuse("zero_point", "must be int8, shaped like scale");
    }
    if (layer.input && !layer.input->dynamic) {
      layer.input_scale = take_one("input_scale", at::kFloat);
      if (!layer.input->symmetric())
        layer.input_zero_point = take_one("input_zero_point", at::kChar);
    }
    return layer;
  }

 private:
  [[noreturn]] void refuse(const std::string& tensor, const std::string& why) const {
    throw FileError(folder_ + ": " + name_ + "." + tensor + " " + why + ".");
  }

  QuantSpec spec_of(const json& entry, const char* key) const {
    try {
      return spec_from_json(entry.value(key, json()));
    } catch (const std::invalid_argument& error) {
      refuse(key, std::string("must be a spec, but ") + error.what());
    }
  }

  at::Tensor take(const std::string& leaf) {
    const auto node = tensors_.extract(name_ + "." + leaf);
    if (node.empty()) refuse(leaf, "must be in the checkpoint, but is missing");
    return node.mapped();
  }

  at::Tensor take_one(const std::string& leaf, at::ScalarType dtype) {
    const at::Tensor found = take(leaf);
    if (found.numel() != 1 || found.scalar_type() != dtype)
      refuse(leaf, "must be one number in " + std::string(c10::toString(dtype)));
    return found;
  }

  static bool is_scale_dtype(at::ScalarType dtype) {
    return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
  }

  at::Tensor codes(const QuantSpec& spec, int64_t rows, int64_t cols) {
    at::Tensor stored = take("codes");
    const Levels range = quant_range(spec, spec.bits);
    if (plain_is_packed(spec)) {
      const int64_t words = packed_words(cols, spec.bits);
      if (stored.scalar_type() != at::kInt || stored.sizes() != at::IntArrayRef({rows, words}))
        refuse("codes",
               "must be int32 [" + std::to_string(rows) + ", " + std::to_string(words) + "]");
      stored = unpack(stored, spec.bits, cols);
    }
    if (stored.sizes() != at::IntArrayRef({rows, cols}))
      refuse("codes", "must be [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
    if (spec.is_float8()) return stored;
    if (stored.scalar_type() != at::kChar) refuse("codes", "must be int8");
    if (stored.numel() != 0 &&
        (stored.min().item<float>() < range.min || stored.max().item<float>() > range.max))
      refuse("codes", "must be levels of the grid " + std::string(grid_name(spec.grid)));
    return stored;
  }

  std::string folder_, name_;
  NamedTensors& tensors_;
};

void write_text(const fs::path& path, const std::string& text) {
  const fs::path pending = path.string() + ".pending";
  std::ofstream(pending) << text << "\n";
  std::error_code failed;
  fs::rename(pending, path, failed);
  if (failed) throw FileError(path.string() + " could not be written: " + failed.message() + ".");
}

}  // namespace

void save_checkpoint(const std::string& folder, const Checkpoint& checkpoint,
                     const std::string& format_name, const std::vector<std::string>& ignore) {
  const Format& format = find_format(format_name);
  CheckpointPlan plan{{}, ignore, {}};
  for (const QuantizedWeights& layer : checkpoint.layers) plan.layers.push_back(plan_of(layer));
  check_format(format, plan);
  const Documents documents = format.documents(plan);
  if (documents.empty())
    throw std::invalid_argument("A folder cannot be written as " + format_name +
                                ", which is a file of its own; Python's torchqat writes it.");
  NamedTensors tensors = checkpoint.others;
  for (const QuantizedWeights& layer : checkpoint.layers) tensors.merge(format.tensors(layer));
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  save_safetensors(fs::path(folder) / "model.safetensors", tensors);
  for (const auto& [file, text] : documents) {
    json content = json::parse(text);
    if (file == "config.json") content = json({{"quantization_config", content}});
    write_text(fs::path(folder) / file, content.dump(2));
  }
}

Checkpoint load_checkpoint(const std::string& folder) {
  const json config = read_config(fs::path(folder) / "config.json");
  Checkpoint checkpoint;
  checkpoint.others = read_tensors(folder);
  const json layers = config.value("layers", json::object());
  if (!layers.is_object())
    throw FileError(folder + " must describe its layers by an object, but does not.");
  for (const auto& [name, entry] : layers.items())
    checkpoint.layers.push_back(LayerReader(folder, name, checkpoint.others).read(entry));
  return checkpoint;
}

}  // namespace qat
