#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "qat/recipe/key_log.h"
#include "qat/recipe/recipe.h"

namespace qat {
namespace {

const RecipeKey& key(const std::string& path) {
  static const std::vector<RecipeKey> keys = recipe_keys();
  return *std::find_if(keys.begin(), keys.end(),
                       [&path](const RecipeKey& known) { return known.path == path; });
}

TEST(Keys, EachHasAMeaningAndEachMeaningAKey) {
  std::set<std::string> read;
  for (const RecipeKey& known : recipe_keys()) {
    EXPECT_NE(known.meaning, "") << known.path;
    EXPECT_FALSE(known.types.empty()) << known.path;
    EXPECT_TRUE(read.insert(known.path).second) << known.path;
  }
  const std::vector<std::string> explained = explained_keys();
  EXPECT_EQ(read, std::set<std::string>(explained.begin(), explained.end()));
}

TEST(Keys, AreAsTheReadersAskForThem) {
  EXPECT_EQ(key("train.steps").types, std::vector<std::string>{"integer"});
  EXPECT_EQ(key("train.steps").fallbacks, std::vector<std::string>{"300"});
  EXPECT_EQ(key("train.steps").least, 0.0);
  EXPECT_EQ(key("train.warmup").fallbacks, std::vector<std::string>{"5%"});
  EXPECT_TRUE(key("train.epochs").fallbacks.empty());
  EXPECT_TRUE(key("layers.weight.group_size").fallbacks.empty());
  EXPECT_EQ(key("layers").types, (std::vector<std::string>{"maps", "map"}));
  EXPECT_EQ(key("data.train").types, (std::vector<std::string>{"map", "text", "maps"}));
  EXPECT_EQ(key("layers.weight").words, std::vector<std::string>{"float"});
  EXPECT_EQ(key("layers.weight.scale").fallbacks, (std::vector<std::string>{"minmax", "mse"}));
  EXPECT_EQ(key("distill.loss").words,
            (std::vector<std::string>{"forward_kl", "cross_entropy", "cosine"}));
  EXPECT_TRUE(key("version").required);
  EXPECT_FALSE(key("train.steps").required);
}

// A reader that only asks in a case which no probe has would be missed else.
TEST(Keys, AreAllThatTheSourcesOfReadersName) {
  std::set<std::string> leaves;
  for (const RecipeKey& known : recipe_keys())
    leaves.insert(known.path.substr(known.path.rfind('.') + 1));
  const std::regex call(
      R"re(\.(?:integer|number|given_integer|given_number|boolean|text|one_of|bound|section|sections|words|child|has|list)\(\s*"(\w+)")re");
  size_t found = 0;
  for (const char* name : {"run_recipe", "train_reader", "rule_reader", "spec_reader", "initialize",
                           "kv_cache_spec"}) {
    std::ifstream in(std::string(QAT_SOURCES) + "/qat/recipe/" + name + ".cpp");
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    for (std::sregex_iterator it(text.begin(), text.end(), call), end; it != end; ++it, ++found)
      EXPECT_TRUE(leaves.count((*it)[1])) << name << ": " << (*it)[1];
  }
  EXPECT_GT(found, 100u);
}

TEST(Keys, TheShortFormOfLayersMeansBlocks) {
  const Recipe recipe =
      parse_recipe("version: 1\nlayers: {weight: {dtype: int4, group_size: 32}}\n", "r");
  ASSERT_EQ(recipe.layers.size(), 1u);
  EXPECT_EQ(recipe.layers[0].match, "blocks");
  EXPECT_EQ(recipe.layers[0].weight.spec->group_size, 32);
  EXPECT_EQ(parse_recipe("version: 1\nlayers: {match: a, weight: float}\n", "r").layers[0].match,
            "a");
  try {
    parse_recipe("version: 1\nlayers: {wieght: {dtype: int4}}\n", "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(std::string(error.what()),
              "r:2:9: layers.weight must be given, or input, but is empty\n"
              "r:2:10: layers.wieght is not a known key; did you mean layers.weight?");
  }
}

}  // namespace
}  // namespace qat
