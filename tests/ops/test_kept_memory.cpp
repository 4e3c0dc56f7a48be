#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

#include "qat/ops/kept_memory.h"

namespace qat {
namespace {

constexpr int64_t kMegabyte = int64_t{1} << 20;

at::Tensor bytes(int64_t count) { return kept_empty({count}, at::TensorOptions(at::kByte)); }

class KeptMemory : public testing::Test {
 protected:
  void SetUp() override { release_kept_memory(); }
};

TEST_F(KeptMemory, ABufferIsUsedAgainOnceItsTensorIsGone) {
  at::Tensor first = bytes(4 * kMegabyte);
  const void* address = first.data_ptr();
  const at::Tensor view = first.slice(0, 10, 20);
  first.reset();
  EXPECT_NE(bytes(4 * kMegabyte).data_ptr(), address) << "a view still uses it";
}

TEST_F(KeptMemory, LayersTakeTurnsOnTheLargestBuffer) {
  const int64_t before = kept_bytes();
  for (int round = 0; round < 3; ++round)
    for (const int64_t size : {2, 6, 4, 10, 6}) bytes(size * kMegabyte);
  EXPECT_EQ(kept_bytes() - before, 10 * kMegabyte);
  EXPECT_EQ(most_kept_bytes() - before, 10 * kMegabyte);
}

TEST_F(KeptMemory, OneOfSeveralBuffersIsKept) {
  const int64_t before = kept_bytes();
  {
    const at::Tensor one = bytes(4 * kMegabyte), other = bytes(6 * kMegabyte);
    release_all_but_the_largest();
    EXPECT_EQ(kept_bytes() - before, 10 * kMegabyte) << "both are in use";
  }
  release_all_but_the_largest();
  EXPECT_EQ(kept_bytes() - before, 6 * kMegabyte);
}

TEST_F(KeptMemory, ASmallResultDoesNotHoldALargeBuffer) {
  bytes(64 * kMegabyte);
  const at::Tensor small = bytes(kMegabyte);
  release_kept_memory();
  EXPECT_LT(most_kept_bytes(), 4 * kMegabyte);
}

TEST_F(KeptMemory, TinyAndEmptyResultsComeFromTheHeap) {
  const int64_t before = kept_bytes();
  const at::Tensor tiny = bytes(100), empty = bytes(0);
  EXPECT_EQ(kept_bytes(), before);
  EXPECT_EQ(empty.numel(), 0);
}

TEST_F(KeptMemory, TensorsMayBeResizedAndClonedAsOthers) {
  at::Tensor one = bytes(kMegabyte).zero_();
  one.resize_({3 * kMegabyte});
  EXPECT_EQ(one.slice(0, 0, kMegabyte).sum().item<int64_t>(), 0);
  EXPECT_TRUE(at::equal(one.clone(), one));
}

TEST_F(KeptMemory, ThreadsDoNotShareABufferInUse) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int id = 0; id < 4; ++id)
    threads.emplace_back([id, &wrong] {
      for (int round = 0; round < 200; ++round) {
        const at::Tensor mine = bytes(kMegabyte / 4);
        auto* data = mine.data_ptr<uint8_t>();
        std::fill(data, data + mine.numel(), static_cast<uint8_t>(id));
        wrong += static_cast<int>(std::count(data, data + mine.numel(), id) != mine.numel());
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace qat
