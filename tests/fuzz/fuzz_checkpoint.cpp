// Any configuration beside any tensors is a checkpoint or a FileError. The first two bytes of an
// input say how many of the next ones are the configuration; the rest is the file of tensors.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "qat/checkpoint/checkpoint.h"

namespace {

void write(const std::filesystem::path& path, const uint8_t* data, size_t size) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::filesystem::path kFolder = [] {
    std::string name = "/dev/shm/fuzz-XXXXXX";
    if (!::mkdtemp(name.data())) std::abort();
    return std::filesystem::path(name);
  }();
  if (size < 2) return 0;
  const size_t config = std::min<size_t>(data[0] + 256 * data[1], size - 2);
  write(kFolder / "config.json", data + 2, config);
  write(kFolder / "model.safetensors", data + 2 + config, size - 2 - config);
  try {
    for (const qat::QuantizedWeights& layer : qat::load_checkpoint(kFolder.string()).layers)
      qat::dequantize_weights(layer);
  } catch (const qat::FileError&) {
  }
  return 0;
}
