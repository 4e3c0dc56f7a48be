#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <stdexcept>
#include <string>

namespace qat {

using NamedTensors = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

// A file that is not what it should be, or a disk that is full. One sentence that names the file.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Writes `tensors` in the safetensors format: beside `path` first, flushed to the disk, then
// renamed into place, so that `path` is never half written. Throws FileError, and leaves nothing,
// when the disk is full or the folder cannot be written.
void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const Metadata& metadata = {{"format", "pt"}});

// Reads every tensor. Throws FileError when the header is truncated, larger than the file, not
// JSON, or describes tensors that overlap, leave gaps or do not fill the file.
NamedTensors load_safetensors(const std::string& path);

// Checks the header and the file size without reading tensors; throws as load_safetensors does.
void check_safetensors(const std::string& path);

}  // namespace qat
