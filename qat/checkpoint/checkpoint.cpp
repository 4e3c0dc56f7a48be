#include "qat/checkpoint/checkpoint.h"

#include <ATen/Functions.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/plain.h"
#include "qat/checkpoint/layer_reader.h"
#include "qat/checkpoint/pending.h"
#include "qat/error.h"

namespace qat {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json read_config(const fs::path& path) {
  std::ifstream in(path);
  if (!in) throw FileError(path.string() + " must be a readable file, but cannot be opened.");
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

// Weights that no config.json says are quantized are not those of an export, which may be replaced.
void check_no_float_model(const fs::path& folder, const fs::path& shown) {
  std::ifstream in(folder / "config.json");
  const json config = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!fs::is_directory(folder) || (config.is_object() && config.contains("quantization_config")))
    return;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors")
      throw FileError(
          shown.string() +
          " must not hold a model in floating point, which would be replaced, but holds " +
          entry.path().filename().string() + ".");
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
    check_no_float_model(place.path(), folder);
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
    checkpoint.layers.push_back(read_layer(folder, name, entry, checkpoint.others));
  return checkpoint;
}

}  // namespace qat
