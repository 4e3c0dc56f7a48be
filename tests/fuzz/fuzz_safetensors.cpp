// Any bytes are a safetensors file or a FileError.
#include "qat/checkpoint/safetensors.h"
#include "tests/fuzz/scratch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static qat::fuzz::ScratchFile file;
  file.write(data, size);
  try {
    qat::load_safetensors(file.path());
  } catch (const qat::FileError&) {
  }
  return 0;
}
