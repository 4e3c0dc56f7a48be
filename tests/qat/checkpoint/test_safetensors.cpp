#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "qat/checkpoint/safetensors.h"
#include "tests/qat/checkpoint/file_size_limit.h"
#include "tests/qat/message_of.h"
#include "tests/qat/other_device.h"

namespace qat {
namespace {

int files_in(const std::filesystem::path& folder) {
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++files;
  return files;
}

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("qat_safetensors_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "model.safetensors").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write_raw(uint64_t length, const std::string& rest) {
    std::ofstream out(path_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << rest;
  }
  std::string problem() {
    try {
      load_safetensors(path_);
    } catch (const FileError& error) {
      return std::string(error.what()).substr(path_.size());
    }
    return "";
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(Safetensors, RoundTripsEveryDtype) {
  NamedTensors tensors;
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kChar,
                           at::kByte, at::kBool, at::kDouble})
    tensors["t" + std::to_string(static_cast<int>(dtype))] = at::randint(0, 2, {3, 5}).to(dtype);
  tensors["empty"] = at::empty({0, 4});
  tensors["scalar"] = at::tensor(3.5f).squeeze();
  tensors["transposed"] = at::randn({4, 6}).t();
  save_safetensors(path_, tensors);
  const NamedTensors read = load_safetensors(path_);
  ASSERT_EQ(read.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read.at(name), tensor)) << name;
  }
}

TEST_F(Safetensors, LeavesNoPendingFileBehind) {
  save_safetensors(path_, {{"x", at::zeros({2})}});
  EXPECT_EQ(files_in(folder_), 1);
}

TEST_F(Safetensors, AMissingFileIsNamed) {
  EXPECT_EQ(problem(), " must be a readable safetensors file, but cannot be opened.");
}

TEST_F(Safetensors, RefusesATruncatedLength) {
  std::ofstream(path_) << "abc";
  EXPECT_EQ(
      problem(),
      " must be a safetensors file, but it has 3 bytes, fewer than the 8 of a header length.");
}

TEST_F(Safetensors, RefusesAnOversizedHeader) {
  write_raw(uint64_t{1} << 60, "{}");
  EXPECT_EQ(problem(),
            " must be a safetensors file, but its header claims 1152921504606846976 bytes of the 2 "
            "that follow.");
}

TEST_F(Safetensors, RefusesATruncatedHeader) {
  write_raw(50, "{\"x\":");
  EXPECT_EQ(problem(),
            " must be a safetensors file, but its header claims 50 bytes of the 5 that follow.");
}

TEST_F(Safetensors, RefusesAHeaderThatIsNotJson) {
  write_raw(4, "{\"x\"");
  EXPECT_EQ(problem(), " must be a safetensors file, but its header is not JSON.");
}

TEST_F(Safetensors, RefusesBytesThatDoNotMatchTheShape) {
  const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})";
  write_raw(header.size(), header + "abcd");
  EXPECT_EQ(problem(), " must be a safetensors file, but the bytes of x do not match its shape.");
}

TEST_F(Safetensors, RefusesTruncatedData) {
  const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  write_raw(header.size(), header + "abcd");
  EXPECT_EQ(problem(),
            " must be a safetensors file, but its tensors take 8 bytes and 4 follow the header.");
}

TEST_F(Safetensors, RefusesGapsAndOverlaps) {
  const std::string header =
      R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})";
  write_raw(header.size(), header + "abc");
  EXPECT_EQ(problem(), " must be a safetensors file, but the bytes of y overlap or leave a gap.");
}

TEST_F(Safetensors, RefusesShapesThatOverflow) {
  const std::string header =
      R"({"x":{"dtype":"F32","shape":[281474976710656,281474976710656],"data_offsets":[0,0]}})";
  write_raw(header.size(), header);
  EXPECT_EQ(problem(), " must be a safetensors file, but its header does not describe x properly.");
}

TEST_F(Safetensors, RefusesUnknownDtypesAndBrokenEntries) {
  std::string header = R"({"x":{"dtype":"F4","shape":[],"data_offsets":[0,0]}})";
  write_raw(header.size(), header);
  EXPECT_EQ(problem(), " must be a safetensors file, but the dtype of x is F4.");
  header = R"({"x":7})";
  write_raw(header.size(), header);
  EXPECT_EQ(problem(), " must be a safetensors file, but its header does not describe x properly.");
}

TEST_F(Safetensors, AFullDiskIsOneSentenceAndLeavesWhatWasThere) {
  save_safetensors(path_, {{"x", at::ones({2})}});
  {
    const FileSizeLimit limit(1 << 16);
    EXPECT_EQ(message_of([&] { save_safetensors(path_, {{"x", at::zeros({1 << 16})}}); }),
              path_ + " could not be written: File too large.");
  }
  EXPECT_TRUE(at::equal(load_safetensors(path_).at("x"), at::ones({2})));
  EXPECT_EQ(files_in(folder_), 1);
}

// Whoever may write to the folder could otherwise have another file written over.
TEST_F(Safetensors, ALinkInTheWayIsNotFollowed) {
  const std::filesystem::path victim = folder_ / "victim";
  std::ofstream(victim) << "mine";
  std::filesystem::create_symlink(victim, path_ + ".pending-" + std::to_string(::getpid()));
  save_safetensors(path_, {{"x", at::zeros({2})}});
  std::string text;
  std::ifstream(victim) >> text;
  EXPECT_EQ(text, "mine");
  EXPECT_FALSE(std::filesystem::is_symlink(path_));
  EXPECT_EQ(load_safetensors(path_).count("x"), 1u);
}

TEST_F(Safetensors, TensorsOfOtherDevicesAreWritten) {
  const at::Tensor x = at::randn({3, 4});
  save_safetensors(path_, {{"x", x.to(other_device())}});
  EXPECT_TRUE(at::equal(load_safetensors(path_).at("x"), x));
}

}  // namespace
}  // namespace qat
