// Seeds torch before every test: in C++ programs its default generator starts differently each
// time.

#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace {

class Seeds : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { at::manual_seed(0); }
};

[[maybe_unused]] const bool registered = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new Seeds);  // which owns it
  return true;
}();

}  // namespace
