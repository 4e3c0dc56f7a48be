#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "qat/checkpoint/safetensors.h"
#include "qat/error.h"
#include "qat/recipe/bit_schedule.h"

namespace qat {
namespace {

const std::function<void()> kFaults[] = {
    [] { parse_recipe("version: 2\n", "r"); },
    [] { load_safetensors("no/such/file"); },
    [] { BitSchedule({}, {}, -1); },
    [] { matches("re:(", {"a", "Linear", 8, 8, false}); },
    [] { throw LogicError("Too early."); },
};

// What a handler of exceptions of one type is told.
template <typename Kind>
std::string caught_as(const std::function<void()>& fault) {
  try {
    fault();
  } catch (const Kind& error) {
    return error.what();
  } catch (...) {
    return "another";
  }
  return "nothing";
}

TEST(Error, IsTheRootOfAll) {
  for (const auto& fault : kFaults) {
    const std::string said = caught_as<Error>(fault);
    EXPECT_GT(said.size(), 9u) << said;
    EXPECT_EQ(said, caught_as<std::exception>(fault));
  }
}

TEST(Error, IsAStandardExceptionAsWell) {
  EXPECT_NE(caught_as<std::runtime_error>(kFaults[0]), "another");
  EXPECT_NE(caught_as<std::runtime_error>(kFaults[1]), "another");
  EXPECT_NE(caught_as<std::invalid_argument>(kFaults[2]), "another");
  EXPECT_EQ(caught_as<std::invalid_argument>(kFaults[3]),
            "match must be a regular expression after re:, but is re:(");
  EXPECT_EQ(caught_as<std::logic_error>(kFaults[4]), "Too early.");
  EXPECT_EQ(caught_as<std::invalid_argument>(kFaults[4]), "another");
}

}  // namespace
}  // namespace qat
