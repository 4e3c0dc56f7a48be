#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "qat/checkpoint/checkpoint.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder_); }

  // What load_checkpoint says after `change` to the tensors of the file.
  std::string complaint(const std::function<void(NamedTensors&)>& change) {
    save_checkpoint(folder_, {{random_layer("net.a", group_spec(4, 32), 8, 64)}, {}});
    NamedTensors tensors = load_safetensors(folder_ + "/model.safetensors");
    change(tensors);
    save_safetensors(folder_ + "/model.safetensors", tensors);
    try {
      load_checkpoint(folder_);
    } catch (const FileError& error) {
      return std::string(error.what()).substr(folder_.size() + 2);
    }
    return "";
  }

  const std::string folder_ = fs::temp_directory_path() / ("torchqat-" + std::to_string(getpid()));
};

TEST_F(CheckpointTest, EveryWidthGranularityAndGridComesBack) {
  Checkpoint written;
  int count = 0;
  for (int bits = 2; bits <= 8; ++bits)
    for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
      for (const Granularity granularity :
           {Granularity::tensor, Granularity::channel, Granularity::group, Granularity::block}) {
        QuantSpec spec = group_spec(bits, 16);
        spec.grid = grid;
        spec.granularity = granularity;
        spec.group_size = granularity == Granularity::group ? 16 : 0;
        if (granularity == Granularity::block) spec.block = {4, 16};
        written.layers.push_back(random_layer("l" + std::to_string(100 + count++), spec, 8, 48));
      }
  written.others["bias"] = at::randn({3});
  save_checkpoint(folder_, written);
  const Checkpoint read = load_checkpoint(folder_);
  ASSERT_EQ(read.layers.size(), written.layers.size());
  for (size_t i = 0; i < read.layers.size(); ++i) {
    const QuantizedWeights &a = written.layers[i], &b = read.layers[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_TRUE(at::equal(a.codes, b.codes)) << describe(a.weight);
    EXPECT_TRUE(at::equal(dequantize_weights(a), dequantize_weights(b))) << describe(a.weight);
    EXPECT_EQ(a.weight.grid, b.weight.grid);
  }
  ASSERT_EQ(read.others.size(), 1u);
  EXPECT_TRUE(at::equal(read.others.at("bias"), written.others.at("bias")));
}

TEST_F(CheckpointTest, Fp8AndInputsComeBack) {
  QuantizedWeights layer = random_layer("a", QuantSpec{}, 8, 16);
  layer.weight.grid = Grid::e5m2;
  layer.codes = at::randn({8, 16}).to(at::kFloat8_e5m2);
  layer.input = int8_input(false);
  layer.input_scale = at::full({1}, 0.5f);
  save_checkpoint(folder_, {{layer}, {}});
  const Checkpoint read = load_checkpoint(folder_);
  EXPECT_TRUE(at::equal(dequantize_weights(read.layers[0]), dequantize_weights(layer)));
  EXPECT_EQ(read.layers[0].input_scale->item<float>(), 0.5f);
}

TEST_F(CheckpointTest, WritesTheFoldersOfOtherFormats) {
  save_checkpoint(folder_, {{random_layer("a", group_spec(4, 32), 32, 64)}, {}}, "gptq",
                  {"lm_head"});
  EXPECT_EQ(load_safetensors(folder_ + "/model.safetensors").count("a.qweight"), 1u);
  EXPECT_TRUE(fs::exists(folder_ + "/quantize_config.json"));
  EXPECT_THROW(load_checkpoint(folder_), FileError);  // not what it reads
  EXPECT_THROW(
      save_checkpoint(folder_, {{random_layer("a", group_spec(4, 32), 32, 64)}, {}}, "gguf"),
      std::invalid_argument);
}

TEST_F(CheckpointTest, WhatIsMissingOrMisshapenIsNamed) {
  EXPECT_EQ(complaint([](NamedTensors& t) { t.erase("net.a.scale"); }),
            "net.a.scale must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint([](NamedTensors& t) { t["net.a.codes"] = t["net.a.codes"].slice(0, 1); }),
            "net.a.codes must be int32 [8, 8].");
  EXPECT_EQ(complaint([](NamedTensors& t) { t["net.a.scale"] = t["net.a.scale"].slice(1, 1); }),
            "net.a.scale must have 16 elements.");
}

TEST_F(CheckpointTest, CodesBeyondTheGridAreRefused) {
  QuantSpec spec = group_spec(4, 32);
  spec.grid = Grid::narrow;
  QuantizedWeights layer = random_layer("a", spec, 8, 64);
  layer.codes[0][0] = -8;
  save_checkpoint(folder_, {{layer}, {}});
  EXPECT_THROW(load_checkpoint(folder_), FileError);
}

TEST_F(CheckpointTest, AFolderOfAnotherKindIsRefused) {
  EXPECT_THROW(load_checkpoint(folder_), FileError);
  fs::create_directories(folder_);
  std::ofstream(folder_ + "/config.json")
      << R"({"quantization_config": {"quant_method": "torchqat", "version": 9}})";
  EXPECT_THROW(load_checkpoint(folder_), FileError);
}

}  // namespace
}  // namespace qat
