#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

#include "tests/qat/checkpoint/checkpoint_test.h"
#include "tests/qat/checkpoint/file_size_limit.h"
#include "tests/qat/message_of.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

class CheckpointFilesTest : public CheckpointTest {
 protected:
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
};

int width_in(const std::string& folder) {
  const QuantizedWeights layer = load_checkpoint(folder).layers.at(0);
  EXPECT_TRUE(layer.codes.eq(layer.weight.bits / 2).all().item<bool>());
  return layer.weight.bits;
}

TEST_F(CheckpointFilesTest, AModelInFloatingPointIsNotReplaced) {
  Checkpoint checkpoint;
  checkpoint.layers.push_back(random_layer("a", QuantSpec{}, 1, 1));
  const fs::path weights = fs::path(folder_) / "model-00001-of-00002.safetensors";
  fs::create_directories(folder_);
  save_safetensors(weights.string(), {{"a.weight", at::ones({1, 1})}});
  const std::string expected =
      folder_ +
      " must not hold a model in floating point, which would be replaced, but holds "
      "model-00001-of-00002.safetensors.";
  for (const char* config : {"", "{\"model_type\": \"llama\"}", "no json"}) {
    if (*config) std::ofstream(fs::path(folder_) / "config.json") << config;
    EXPECT_EQ(message_of([&] { save_checkpoint(folder_, checkpoint); }), expected) << config;
    EXPECT_TRUE(fs::exists(weights));
    EXPECT_EQ(entries(), 1);
  }
}

TEST_F(CheckpointFilesTest, AFullDiskLeavesWhatWasThere) {
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
TEST_F(CheckpointFilesTest, AKilledWriterNeverMixesTwoCheckpoints) {
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

TEST_F(CheckpointFilesTest, ReadsShardsByTheirIndex) {
  write_shards(of_width(4), true);
  EXPECT_EQ(width_in(folder_), 4);
  fs::remove(folder_ + "/model-00001.safetensors");
  EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
            folder_ +
                "/model.safetensors.index.json must name the files of the folder, but "
                "net.a.codes is not in model-00001.safetensors.");
}

TEST_F(CheckpointFilesTest, WritingOverShardsLeavesNoneOfThem) {
  write_shards(of_width(4), true);
  save_checkpoint(folder_, of_width(8));
  EXPECT_EQ(width_in(folder_), 8);
  EXPECT_FALSE(fs::exists(folder_ + "/model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(folder_ + "/model-00001.safetensors"));
}

// Which of two files has the current weights, nobody can tell.
TEST_F(CheckpointFilesTest, TwoFilesWithOneTensorAreRefused) {
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

TEST_F(CheckpointFilesTest, OtherFilesOfTheFolderStay) {
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

TEST_F(CheckpointFilesTest, AFolderThatCannotBeWrittenIsNamed) {
  std::ofstream(folder_) << "a file";
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_, of_width(4)); }),
            folder_ + " could not be written: Not a directory.");
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_ + "/below", of_width(4)); }),
            folder_ + "/below could not be written: Not a directory.");
}

// As in a program's first run: nothing of the path is there, so that no part of it can be resolved.
TEST_F(CheckpointFilesTest, AFolderMayBeRelative) {
  const fs::path before = fs::current_path();
  fs::current_path(parent_);
  save_checkpoint("out", of_width(4));
  save_checkpoint("runs/first/", of_width(8));
  fs::current_path(before);
  EXPECT_EQ(width_in(folder_), 4);
  EXPECT_EQ(width_in(parent_ / "runs" / "first"), 8);
}

TEST_F(CheckpointFilesTest, AFolderThatIsNotThereIsNoDamagedCheckpoint) {
  EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
            folder_ + "/config.json must be a readable file, but cannot be opened.");
}

}  // namespace
}  // namespace qat
