#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "qat/checkpoint/checkpoint.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {

// A folder to write checkpoints to, in one of its own.
class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(parent_); }
  void TearDown() override { std::filesystem::remove_all(parent_); }

  const std::filesystem::path parent_ =
      std::filesystem::temp_directory_path() / ("torchqat-" + std::to_string(getpid()));
  const std::string folder_ = parent_ / "out";
};

// One layer whose codes are all its width.
inline Checkpoint of_width(int bits) {
  QuantizedWeights layer = random_layer("net.a", group_spec(bits, 32), 8, 64);
  layer.codes.fill_(bits / 2);
  return {{layer}, {}};
}

}  // namespace qat
