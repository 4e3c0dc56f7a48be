// What strangers may send, and what fuzzers have found: every file of tests/fuzz/corpus ends in an
// answer or in the error that is promised.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "qat/checkpoint/checkpoint.h"
#include "qat/recipe/plan.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> files_of(const std::string& kind) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fs::path(QAT_CORPUS) / kind))
    files.push_back(entry.path());
  return files;
}

std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(Corpus, RecipesAreReadOrRefused) {
  const std::vector<fs::path> files = files_of("recipe");
  ASSERT_GE(files.size(), 9u);
  for (const fs::path& file : files) {
    SCOPED_TRACE(file.string());
    EXPECT_THROW(
        make_plan(parse_recipe(content_of(file), "r"), {{"model.q_proj", "Linear", 64, 64, false}}),
        RecipeError);
  }
}

TEST(Corpus, SafetensorsAreReadOrRefused) {
  const std::vector<fs::path> files = files_of("safetensors");
  ASSERT_GE(files.size(), 16u);
  for (const fs::path& file : files) {
    SCOPED_TRACE(file.string());
    try {
      load_safetensors(file.string());
    } catch (const FileError& error) {
      EXPECT_NE(std::string(error.what()).find(file.string()), std::string::npos) << error.what();
    }
  }
}

TEST(Corpus, CheckpointsAreReadOrRefused) {
  const fs::path folder = fs::temp_directory_path() / ("corpus-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  int read = 0;
  for (const fs::path& file : files_of("checkpoint")) {
    SCOPED_TRACE(file.string());
    const std::string bytes = content_of(file);
    const size_t config = static_cast<uint8_t>(bytes[0]) + 256u * static_cast<uint8_t>(bytes[1]);
    std::ofstream(folder / "config.json") << bytes.substr(2, config);
    std::ofstream(folder / "model.safetensors", std::ios::binary) << bytes.substr(2 + config);
    try {
      for (const QuantizedWeights& layer : load_checkpoint(folder.string()).layers)
        read += dequantize_weights(layer).numel() == layer.codes.numel();
    } catch (const FileError&) {
    }
  }
  EXPECT_GE(read, 1);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace qat
