#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "qat/checkpoint/checkpoint.h"
#include "tests/qat/checkpoint/file_size_limit.h"
#include "tests/qat/checkpoint/formats/layers.h"
#include "tests/qat/message_of.h"
#include "tests/qat/preset_weights.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(parent_); }
  void TearDown() override { fs::remove_all(parent_); }

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

  // A folder as Python writes one that is larger than a file may be.
  void write_shards(const Checkpoint& checkpoint, bool index) {
    save_checkpoint(folder_, checkpoint);
    const fs::path whole = fs::path(folder_) / "model.safetensors";
    nlohmann::json files;
    int count = 0;
    for (const auto& [name, tensor] : load_safetensors(whole.string())) {
      const std::string file = "model-0000" + std::to_string(++count) + ".safetensors";
      save_safetensors(folder_ + "/" + file, {{name, tensor}});
      files[name] = file;
    }
    fs::remove(whole);
    if (index)
      std::ofstream(whole.string() + ".index.json")
          << nlohmann::json{{"metadata", {{"total_size", 0}}}, {"weight_map", files}};
  }

  int entries() const {
    int count = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(parent_)) ++count;
    return count;
  }

  const fs::path parent_ = fs::temp_directory_path() / ("torchqat-" + std::to_string(getpid()));
  const std::string folder_ = parent_ / "out";
};

// One layer whose codes are all its width.
Checkpoint of_width(int bits) {
  QuantizedWeights layer = random_layer("net.a", group_spec(bits, 32), 8, 64);
  layer.codes.fill_(bits / 2);
  return {{layer}, {}};
}

int width_in(const std::string& folder) {
  const QuantizedWeights layer = load_checkpoint(folder).layers.at(0);
  EXPECT_TRUE(layer.codes.eq(layer.weight.bits / 2).all().item<bool>());
  return layer.weight.bits;
}

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

int version_of(const std::string& folder) {
  std::ifstream config(folder + "/config.json");
  return nlohmann::json::parse(config)["quantization_config"]["version"];
}

TEST_F(CheckpointTest, EveryPresetComesBack) {
  Checkpoint written;
  for (const Preset& preset : presets())
    written.layers.push_back(preset_weights(preset.name, preset.spec, at::randn({8, 512})));
  save_checkpoint(folder_, written);
  EXPECT_EQ(version_of(folder_), 2);
  const Checkpoint read = load_checkpoint(folder_);
  ASSERT_EQ(read.layers.size(), written.layers.size());
  for (const QuantizedWeights& a : written.layers)
    for (const QuantizedWeights& b : read.layers) {
      if (a.name != b.name) continue;
      EXPECT_EQ(describe(a.weight), describe(b.weight));
      EXPECT_EQ(a.weight.scale, b.weight.scale);
      EXPECT_TRUE(at::equal(a.codes.to(at::kFloat), b.codes.to(at::kFloat))) << a.name;
      EXPECT_TRUE(at::equal(dequantize_weights(a), dequantize_weights(b))) << a.name;
      EXPECT_EQ(bits_per_weight(a), bits_per_weight(b));
    }
}

TEST_F(CheckpointTest, TypesOfVersion1AreWrittenInIt) {
  save_checkpoint(folder_, of_width(4));
  EXPECT_EQ(version_of(folder_), 1);
}

TEST_F(CheckpointTest, RefusesScalesOfTwoLevelsThatDoNotFit) {
  const auto complaint_about = [&](const char* preset,
                                   const std::function<void(NamedTensors&)>& change) {
    save_checkpoint(folder_,
                    {{preset_weights("a", find_preset(preset)->spec, at::randn({8, 512}))}, {}});
    NamedTensors tensors = load_safetensors(folder_ + "/model.safetensors");
    change(tensors);
    save_safetensors(folder_ + "/model.safetensors", tensors);
    const std::string text = message_of([&] { load_checkpoint(folder_); });
    return text.empty() ? text : text.substr(folder_.size() + 2);
  };
  EXPECT_EQ(complaint_about("nvfp4", [](auto& t) { t.erase("a.outer_scale"); }),
            "a.outer_scale must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint_about("q4_k", [](auto& t) { t.erase("a.offset"); }),
            "a.offset must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint_about("q4_k", [](auto& t) { t["a.outer_offset"] = at::ones({8, 2}); }),
            "a.outer_offset must have 16 elements in float16.");
  EXPECT_EQ(complaint_about("mxfp4", [](auto& t) { t["a.scale"] = at::ones({8, 16}); }),
            "a.scale must be Byte.");
  EXPECT_EQ(complaint_about(
                "mxfp6_e2m3",
                [](auto& t) { t["a.codes"] = at::full({8, 512}, 9.0f).to(at::kFloat8_e4m3fn); }),
            "a.codes must be numbers of fp6_e2m3.");
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

TEST_F(CheckpointTest, Fp8CodesOfAnotherTypeAreRefused) {
  QuantizedWeights layer = random_layer("a", QuantSpec{}, 8, 16);
  layer.weight.grid = Grid::e4m3;
  for (const auto dtype : {at::kFloat8_e5m2, at::kChar, at::kFloat}) {
    layer.codes = at::ones({8, 16}).to(dtype);
    save_checkpoint(folder_, {{layer}, {}});
    EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
              folder_ + ": a.codes must be Float8_e4m3fn.");
  }
}

TEST_F(CheckpointTest, ATensorThatWouldTakeAnothersPlaceIsRefused) {
  Checkpoint checkpoint = of_width(4);
  checkpoint.others["net.a.scale"] = at::ones({3});
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_, checkpoint); }),
            "net.a.scale must be the name of one tensor, but is that of a quantized layer's and of "
            "another one.");
  checkpoint.others.clear();
  checkpoint.layers.push_back(checkpoint.layers[0]);
  EXPECT_THROW(save_checkpoint(folder_, checkpoint), std::invalid_argument);
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(CheckpointTest, AFullDiskLeavesWhatWasThere) {
  // Of many layers of one code: more configuration than tensors.
  const auto checkpoint = [](int code) {
    Checkpoint many;
    for (int i = 0; i < 20; ++i) {
      many.layers.push_back(random_layer(std::string(1, 'a' + i), QuantSpec{}, 1, 1));
      many.layers.back().codes.fill_(code);
    }
    return many;
  };
  save_checkpoint(folder_, checkpoint(1));
  const auto config = fs::file_size(folder_ + "/config.json"),
             tensors = fs::file_size(folder_ + "/model.safetensors");
  ASSERT_GT(config, tensors);
  for (const auto& [bytes, file] :
       {std::pair((config + tensors) / 2, "config.json"), {tensors / 2, "model.safetensors"}}) {
    const FileSizeLimit limit(bytes);
    EXPECT_EQ(message_of([&] { save_checkpoint(folder_, checkpoint(2)); }),
              folder_ + "/" + file + " could not be written: File too large.");
    EXPECT_EQ(load_checkpoint(folder_).layers[0].codes.item<int8_t>(), 1);
    EXPECT_EQ(entries(), 1) << "something was left beside the folder";
  }
}

// Codes of one width under the configuration of the other would be refused or wrong.
TEST_F(CheckpointTest, AKilledWriterNeverMixesTwoCheckpoints) {
  const Checkpoint narrow = of_width(4), wide = of_width(8);
  save_checkpoint(folder_, narrow);
  for (int milliseconds = 1; milliseconds <= 20; ++milliseconds) {
    const pid_t writer = ::fork();
    if (writer == 0)
      for (;;) {
        save_checkpoint(folder_, wide);
        save_checkpoint(folder_, narrow);
      }
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    ::kill(writer, SIGKILL);
    ::waitpid(writer, nullptr, 0);
    EXPECT_NO_THROW(width_in(folder_)) << message_of([&] { width_in(folder_); });
  }
}

TEST_F(CheckpointTest, ReadsShardsByTheirIndex) {
  write_shards(of_width(4), true);
  EXPECT_EQ(width_in(folder_), 4);
  fs::remove(folder_ + "/model-00001.safetensors");
  EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
            folder_ +
                "/model.safetensors.index.json must name the files of the folder, but "
                "net.a.codes is not in model-00001.safetensors.");
}

TEST_F(CheckpointTest, WritingOverShardsLeavesNoneOfThem) {
  write_shards(of_width(4), true);
  save_checkpoint(folder_, of_width(8));
  EXPECT_EQ(width_in(folder_), 8);
  EXPECT_FALSE(fs::exists(folder_ + "/model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(folder_ + "/model-00001.safetensors"));
}

// Which of two files has the current weights, nobody can tell.
TEST_F(CheckpointTest, TwoFilesWithOneTensorAreRefused) {
  Checkpoint old = of_width(4), current = of_width(4);
  current.layers[0].codes.fill_(3);
  for (const bool index : {false, true}) {
    write_shards(old, index);
    save_checkpoint(folder_ + "-new", current);
    for (const char* file : {"/model.safetensors", "/config.json"})
      fs::rename(folder_ + "-new" + file, folder_ + file);
    EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
              index ? folder_ +
                          "/model.safetensors.index.json must name the files of the folder, "
                          "but net.a.codes is in model.safetensors, too."
                    : folder_ +
                          ": net.a.codes must be in one file, but is in "
                          "model-00001.safetensors and in model.safetensors.");
    fs::remove_all(folder_);
  }
}

TEST_F(CheckpointTest, OtherFilesOfTheFolderStay) {
  save_checkpoint(folder_, {{random_layer("a", group_spec(4, 32), 32, 64)}, {}}, "gptq");
  std::ofstream(folder_ + "/tokenizer.json") << "{}";
  fs::create_directories(folder_ + "/logs");
  std::ofstream(folder_ + "/logs/train.txt") << "x";
  save_checkpoint(folder_ + "/", of_width(4));
  EXPECT_EQ(width_in(folder_), 4);
  EXPECT_TRUE(fs::exists(folder_ + "/tokenizer.json"));
  EXPECT_TRUE(fs::exists(folder_ + "/logs/train.txt"));
  EXPECT_FALSE(fs::exists(folder_ + "/quantize_config.json"));  // gptq's own
  EXPECT_EQ(entries(), 1);
}

TEST_F(CheckpointTest, AFolderThatCannotBeWrittenIsNamed) {
  std::ofstream(folder_) << "a file";
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_, of_width(4)); }),
            folder_ + " could not be written: Not a directory.");
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_ + "/below", of_width(4)); }),
            folder_ + "/below could not be written: Not a directory.");
}

}  // namespace
}  // namespace qat
