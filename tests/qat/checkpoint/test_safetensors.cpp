#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "qat/checkpoint/safetensors.h"

namespace qat {
namespace {

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
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    files += entry.is_regular_file();
  EXPECT_EQ(files, 1);
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

TEST_F(Safetensors, AFullDiskIsOneSentenceAndLeavesNothing) {
  // Writing to /dev/full fails as a full disk does; a folder of links stands in for one.
  const std::string target = (folder_ / "model.safetensors").string();
  const std::string pending = target + ".pending-" + std::to_string(::getpid());
  std::filesystem::create_symlink("/dev/full", pending);
  try {
    save_safetensors(target, {{"x", at::zeros({1 << 16})}});
    FAIL();
  } catch (const FileError& error) {
    EXPECT_EQ(std::string(error.what()),
              target + " could not be written: No space left on device.");
  }
  EXPECT_FALSE(std::filesystem::exists(target));
}

}  // namespace
}  // namespace qat
