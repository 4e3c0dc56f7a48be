#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "qat/error.h"
#include "qat/ops/api.h"

namespace qat {

using NamedTensors = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

// A file that is not what it should be, or a disk that is full. One sentence that names the file.
class QAT_API FileError : public ErrorAs<std::runtime_error> {
 public:
  using ErrorAs::ErrorAs;
};

// Writes `tensors`, of any device, in the safetensors format: beside `path` first, flushed to the
// disk, then renamed into place, so that `path` is never half written. Throws FileError, and leaves
// what was there, when the disk is full or the folder cannot be written.
QAT_API void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                              const Metadata& metadata = {{"format", "pt"}});

// Reads every tensor. Throws FileError when the header is truncated, larger than the file, not
// JSON, or describes tensors that overlap, leave gaps or do not fill the file.
QAT_API NamedTensors load_safetensors(const std::filesystem::path& path);

// A file whose tensors are read one at a time, by copying rather than by mapping, so that what is
// held is what was asked for. Its header is checked when it is opened; throws as load_safetensors
// does.
class QAT_API SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path);
  ~SafetensorsReader();
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  // In the order of their bytes.
  std::vector<std::string> names() const;
  // Throws FileError when there is no such tensor.
  at::Tensor read(const std::string& name);
  std::vector<int64_t> shape_of(const std::string& name) const;

 private:
  struct Content;
  std::unique_ptr<Content> content_;
};

// Checks the header and the file size without reading tensors; throws as load_safetensors does.
QAT_API void check_safetensors(const std::filesystem::path& path);

}  // namespace qat
