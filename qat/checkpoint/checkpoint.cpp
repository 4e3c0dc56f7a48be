#include "qat/checkpoint/checkpoint.h"

#include <ATen/Functions.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/minifloat.h"
#include "qat/checkpoint/formats/plain.h"
#include "qat/checkpoint/formats/spec_json.h"
#include "qat/checkpoint/pending.h"
#include "qat/error.h"
#include "qat/ops/checks.h"
#include "qat/ops/pack.h"
#include "qat/ops/quantize.h"

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
  if (version != 1 && version != kPlainVersion)
    throw FileError(path.string() + " must have version 1 or " + std::to_string(kPlainVersion) +
                    ", which this torchqat reads, but has " + version.dump() + ".");
  return quantization;
}

// The file of each tensor, as it is written beside tensors that are in several.
std::optional<std::map<std::string, std::string>> read_index(const fs::path& path) {
  if (!fs::exists(path)) return std::nullopt;
  std::ifstream in(path);
  const json index = json::parse(in, nullptr, /*allow_exceptions=*/false);
  const json files = index.is_object() ? index.value("weight_map", json()) : json();
  std::map<std::string, std::string> found;
  bool readable = files.is_object();
  if (readable)
    for (const auto& [name, file] : files.items())
      if ((readable = readable && file.is_string())) found[name] = file;
  if (!readable)
    throw FileError(path.string() + " must have a weight_map from tensors to files, but has not.");
  return found;
}

NamedTensors read_tensors(const fs::path& folder) {
  std::set<fs::path> files;
  if (fs::is_directory(folder))
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".safetensors") files.insert(entry.path());
  if (files.empty())
    throw FileError(folder.string() + " must hold safetensors files, but has none.");
  const fs::path index_path = folder / "model.safetensors.index.json";
  const auto index = read_index(index_path);
  const auto disagree = [&](const std::string& why) {
    throw FileError(index_path.string() + " must name the files of the folder, but " + why + ".");
  };
  NamedTensors tensors;
  std::map<std::string, std::string> holders;
  for (const fs::path& path : files)
    for (const auto& [name, tensor] : load_safetensors(path)) {
      const std::string file = path.filename();
      const auto [holder, first] = holders.emplace(name, file);
      if (index && !index->count(name)) disagree("does not name " + name + " of " + file);
      if (index && index->at(name) != file) disagree(name + " is in " + file + ", too");
      if (!first)
        throw FileError(folder.string() + ": " + name + " must be in one file, but is in " +
                        holder->second + " and in " + file + ".");
      tensors.emplace(name, tensor);
    }
  if (index)
    for (const auto& [name, file] : *index)
      if (!tensors.count(name)) disagree(name + " is not in " + file);
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
    layer.scale = scales("scale", layer.weight, rows, cols);
    if (layer.weight.has_offset()) layer.offset = scales("offset", layer.weight, rows, cols);
    if (layer.weight.scale.has_outer()) {
      layer.outer_scale = outer_scales("outer_scale", layer.weight, rows, cols);
      if (layer.offset) layer.outer_offset = outer_scales("outer_offset", layer.weight, rows, cols);
    }
    if (layer.weight.grid == Grid::asymmetric) {
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

  // Of each block, in a dtype of numbers or in that of their codes.
  at::Tensor scales(const char* leaf, const QuantSpec& spec, int64_t rows, int64_t cols) {
    const at::Tensor found = take(leaf);
    const int64_t blocks = block_count(spec, rows, cols);
    if (found.dim() != 2 || found.numel() != blocks || found.size(0) != block_count(spec, rows, 1))
      refuse(leaf, "must have " + std::to_string(blocks) + " elements");
    const at::ScalarType dtype = found.scalar_type();
    const bool number = dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
    const bool is_number = dtype_of(spec.scale.code).has_value();
    const at::ScalarType expected = plain_scale_dtype(spec.scale, dtype);
    if (is_number ? !number : dtype != expected)
      refuse(leaf, is_number ? "must be float32, float16 or bfloat16"
                             : std::string("must be ") + c10::toString(expected));
    return is_number ? found : found.view(scale_storage(spec.scale, dtype));
  }

  at::Tensor outer_scales(const char* leaf, const QuantSpec& spec, int64_t rows, int64_t cols) {
    const at::Tensor found = take(leaf);
    const int64_t blocks = outer_block_count(spec, rows, cols);
    if (found.dim() != 2 || found.numel() != blocks ||
        found.size(0) != outer_block_count(spec, rows, 1) ||
        found.scalar_type() != spec.scale.outer_dtype)
      refuse(leaf, "must have " + std::to_string(blocks) + " elements in " +
                       name_of(spec.scale.outer_dtype));
    return found;
  }

  // Whether numbers are those of a float of fewer bits.
  static bool is_of(const at::Tensor& numbers, Grid grid) {
    const at::Tensor magnitudes = numbers.to(at::kFloat).abs();
    if (!at::le(magnitudes, levels_of(grid, float_bits(grid)).max).all().item<bool>()) return false;
    const at::Tensor same = minifloat_of_bits(minifloat_bits(numbers, grid), grid);
    return at::equal(same.to(at::kFloat), numbers.to(at::kFloat));
  }

  at::Tensor codes(const QuantSpec& spec, int64_t rows, int64_t cols) {
    at::Tensor stored = take("codes");
    const Levels range = quant_range(spec, spec.bits);
    if (plain_is_packed(spec)) {
      const int64_t words = packed_words(cols, spec.bits);
      if (stored.scalar_type() != at::kInt || stored.sizes() != at::IntArrayRef({rows, words}))
        refuse("codes",
               "must be int32 [" + std::to_string(rows) + ", " + std::to_string(words) + "]");
      stored = plain_codes(unpack(stored, spec.bits, cols), spec);
    }
    if (stored.sizes() != at::IntArrayRef({rows, cols}))
      refuse("codes", "must be [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
    if (spec.is_float()) {
      const at::ScalarType dtype = code_dtype(spec.grid);
      if (stored.scalar_type() != dtype)
        refuse("codes", std::string("must be ") + c10::toString(dtype));
      if (!spec.is_float8() && !is_of(stored, spec.grid))
        refuse("codes", "must be numbers of " + std::string(grid_name(spec.grid)));
      return stored;
    }
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
  detail::PendingFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

void add_tensors(NamedTensors& tensors, const NamedTensors& more) {
  for (const auto& [name, tensor] : more)
    if (!tensors.emplace(name, tensor).second)
      throw InvalidArgument(name +
                            " must be the name of one tensor, but is that of a quantized "
                            "layer's and of another one.");
}

// Whether a file is of a checkpoint, of whatever format and in however many parts.
bool is_of_checkpoint(const std::string& file) {
  return file == "config.json" || file == "quantize_config.json" ||
         file == "hf_quant_config.json" ||
         (file.starts_with("model") && file.find(".safetensors") != std::string::npos);
}

// What others put beside a checkpoint goes over to the folder that takes its place: the same files,
// under a second name for as long as both folders are there.
void keep_others(const fs::path& from, const fs::path& to) {
  if (!fs::is_directory(from)) return;
  constexpr auto kWhole = fs::copy_options::recursive | fs::copy_options::copy_symlinks;
  for (const auto& entry : fs::directory_iterator(from)) {
    const fs::path name = entry.path().filename();
    if (is_of_checkpoint(name)) continue;
    std::error_code no_links;
    fs::copy(entry, to / name, kWhole | fs::copy_options::create_hard_links, no_links);
    if (no_links) fs::copy(entry, to / name, kWhole | fs::copy_options::overwrite_existing);
  }
}

// Messages name the folder that was asked for, not the one that is written to.
std::string renamed(std::string message, const std::string& from, const std::string& to) {
  if (const size_t at = message.find(from); at != std::string::npos)
    message.replace(at, from.size(), to);
  return message;
}

}  // namespace

void save_checkpoint(const fs::path& folder, const Checkpoint& checkpoint,
                     const std::string& format_name, const std::vector<std::string>& ignore) {
  const Format& format = find_format(format_name);
  CheckpointPlan plan;
  plan.ignore = ignore;
  for (const QuantizedWeights& layer : checkpoint.layers) plan.layers.push_back(plan_of(layer));
  check_format(format, plan);
  const Documents documents = format.documents(plan);
  if (documents.empty())
    throw InvalidArgument("A folder cannot be written as " + format_name +
                          ", which is a file of its own; Python's torchqat writes it.");
  NamedTensors tensors = checkpoint.others;
  for (const QuantizedWeights& layer : checkpoint.layers)
    add_tensors(tensors, format.tensors(layer));
  detail::PendingFolder place(folder);
  try {
    save_safetensors(place.pending() / "model.safetensors", tensors);
    for (const auto& [file, text] : documents) {
      json content = json::parse(text);
      if (file == "config.json") content = json({{"quantization_config", content}});
      write_text(place.pending() / file, content.dump(2) + "\n");
    }
    keep_others(place.path(), place.pending());
    place.commit();
  } catch (const FileError& error) {
    throw FileError(renamed(error.what(), place.pending(), folder));
  } catch (const fs::filesystem_error& error) {
    throw FileError(folder.string() + " could not be written: " + error.code().message() + ".");
  }
}

Checkpoint load_checkpoint(const fs::path& folder) {
  const json config = read_config(folder / "config.json");
  Checkpoint checkpoint;
  checkpoint.others = read_tensors(folder);
  const json layers = config.value("layers", json::object());
  if (!layers.is_object())
    throw FileError(folder.string() + " must describe its layers by an object, but does not.");
  for (const auto& [name, entry] : layers.items())
    checkpoint.layers.push_back(LayerReader(folder, name, checkpoint.others).read(entry));
  return checkpoint;
}

}  // namespace qat
