#include <gtest/gtest.h>

#include <string>

#include "qat/checkpoint/formats/format.h"
#include "qat/recipe/run_recipe.h"

namespace qat {
namespace {

TEST(RunRecipe, ModeAutoHasBudgetsAndSearchesScales) {
  const RunRecipe recipe = parse_run_recipe(
      "version: 1\nmode: auto\nlayers:\n  - {match: a, weight: {dtype: int4}}\n"
      "evaluate: {task: t.jsonl, accept: {task_drop: 0.01}}\n"
      "size: {bits_per_weight: 4.5}\nengine: llama.cpp\n",
      "r.yaml");
  EXPECT_EQ(recipe.mode, "auto");
  EXPECT_EQ(recipe.size_bits_per_weight, 4.5);
  EXPECT_EQ(recipe.evaluate.accept_task_drop, 0.01);
  EXPECT_EQ(recipe.exports, std::vector<std::string>{"gguf"});
  EXPECT_EQ(recipe.layers[0].weight.spec->range, Range::fixed);
}

TEST(RunRecipe, AKindOfModelHasItsLossLimitsAndEngines) {
  const std::string rule = "layers:\n  - {match: a, weight: {dtype: int4}}\n";
  const RunRecipe recipe = parse_run_recipe(
      "version: 1\nmode: auto\nmodel: {kind: sentence_encoder}\n" + rule +
          "evaluate: {sensitivity: true, accept: {cosine: 0.99}}\nengine: onnxruntime\n",
      "r.yaml");
  EXPECT_EQ(recipe.distill.loss, "cosine");
  EXPECT_EQ(recipe.evaluate.accept_cosine, 0.99);
  EXPECT_TRUE(recipe.evaluate.sensitivity);
  EXPECT_EQ(recipe.exports, std::vector<std::string>{"onnx"});
  const RunRecipe classifier = parse_run_recipe(
      "version: 1\nmodel: {kind: classifier}\n" + rule + "evaluate: {accept: {task_drop: 0.01}}\n",
      "r.yaml");
  EXPECT_EQ(classifier.distill.loss, "forward_kl");
  EXPECT_EQ(classifier.evaluate.accept_task_drop, 0.01);
  EXPECT_EQ(parse_run_recipe("version: 1\n" + rule, "r.yaml").model.kind, "causal_lm");
}

TEST(RunRecipe, ReadsAdaptersAndOscillation) {
  const std::string rule = "layers:\n  - {match: a, weight: {dtype: int4}}\n";
  const RunRecipe lora = parse_run_recipe(
      "version: 1\n" + rule + "train: {parameters: lora, lora: {rank: 8, alpha: 4}}\n", "r.yaml");
  EXPECT_EQ(lora.train.parameters, "lora");
  EXPECT_EQ(lora.train.lora.rank, 8);
  EXPECT_EQ(lora.train.lora.alpha, 4.0);
  const RunRecipe frozen = parse_run_recipe(
      "version: 1\n" + rule + "train: {oscillation: {method: freeze, threshold: 0.01}}\n",
      "r.yaml");
  EXPECT_EQ(frozen.train.oscillation.method, "freeze");
  EXPECT_EQ(frozen.train.oscillation.threshold, 0.01);
  EXPECT_EQ(frozen.train.oscillation.dampening, 0.02);
}

TEST(RunRecipe, SpreadModelsHaveNoMonitor) {
  const std::string rule = "layers:\n  - {match: a, weight: {dtype: int4}}\n";
  const RunRecipe spread =
      parse_run_recipe("version: 1\n" + rule +
                           "train: {strategy: fsdp, cpu_offload: true, compile: true, "
                           "mixed_precision: bfloat16}\n",
                       "r.yaml");
  EXPECT_FALSE(spread.train.monitor);
  EXPECT_TRUE(spread.train.cpu_offload && spread.train.compile);
  EXPECT_EQ(spread.train.mixed_precision, "bfloat16");
  const RunRecipe plain = parse_run_recipe("version: 1\n" + rule, "r.yaml");
  EXPECT_TRUE(plain.train.monitor);
  EXPECT_EQ(plain.train.strategy, "ddp");
}

TEST(RunRecipe, EveryFormatMayBeExportedAndNoOther) {
  const std::string head = "version: 1\nlayers:\n  - {match: a, weight: {dtype: int4}}\nexport: [";
  std::string all, listed;
  const std::vector<std::string> names = format_names();
  for (size_t i = 0; i < names.size(); ++i) {
    all += (i == 0 ? "" : ", ") + names[i];
    listed += (i == 0 ? "" : i + 1 == names.size() ? " or " : ", ") + names[i];
  }
  EXPECT_EQ(parse_run_recipe(head + all + "]\n", "r").exports, names);
  try {
    parse_run_recipe(head + "bin]\n", "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(error.what(), "r:4:10: export must list only " + listed + ", but has bin");
  }
}

TEST(RunRecipe, ItsCoreIsWhatProgramsRead) {
  const std::string text =
      "version: 1\nmodel: {path: m}\nlayers:\n  - {match: a, weight: {dtype: int4}}\n"
      "initialize: {method: gptq}\nschedule: [{until: 100%, weight: int4}]\n"
      "train: {steps: 40, freeze_observers: 50%, learning_rate: 0.1}\n";
  RunRecipe whole = parse_run_recipe(text, "r");
  const Recipe core = parse_recipe(text, "r");
  EXPECT_EQ(core.file, "r");
  EXPECT_EQ(core.text, text);
  EXPECT_EQ(core.layers[0].match, whole.layers[0].match);
  EXPECT_EQ(core.initialize.method, "gptq");
  EXPECT_EQ(core.schedule.size(), 1u);
  EXPECT_EQ(core.train.steps, 40);
  EXPECT_EQ(core.train.freeze_observers, (Bound{true, 50.0}));
  whole.train.steps = 30;  // as a command line may
  EXPECT_EQ(whole.core().train.steps, 30);
  EXPECT_THROW(parse_recipe(text + "distill: {loss: l2}\n", "r"), RecipeError);
}

}  // namespace
}  // namespace qat
