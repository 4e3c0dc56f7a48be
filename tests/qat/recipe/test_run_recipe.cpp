#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

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
  EXPECT_EQ(parse_run_recipe("version: 1\nmodel: {kind: seq2seq}\n" + rule +
                                 "evaluate: {accept: {task_drop: 0.02}}\n",
                             "r.yaml")
                .evaluate.accept_task_drop,
            0.02);
  EXPECT_EQ(classifier.distill.loss, "forward_kl");
  EXPECT_EQ(classifier.evaluate.accept_task_drop, 0.01);
  EXPECT_EQ(parse_run_recipe("version: 1\n" + rule, "r.yaml").model.kind, "causal_lm");
}

// Else all is paid for before it shows.
TEST(RunRecipe, AnEngineLoadsOneOfTheExports) {
  const std::string head =
      "version: 1\nmode: auto\nlayers: [{match: a, weight: {dtype: int4}}]\n"
      "evaluate: {accept: {kl: 0.1}}\nengine: llama.cpp\n";
  EXPECT_EQ(parse_run_recipe(head + "export: [safetensors, gguf]\n", "r").exports.size(), 2u);
  try {
    parse_run_recipe(head + "export: [safetensors]\n", "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(std::string(error.what()),
              "r:6:9: export must list gguf, which is what engine: llama.cpp loads, but is "
              "[safetensors]");
  }
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

TEST(RunRecipe, ReadsDeviceOptimizerAndEpochs) {
  const std::string rule = "layers:\n  - {match: a, weight: {dtype: int4}}\n";
  const RunRecipe plain = parse_run_recipe("version: 1\n" + rule, "r");
  EXPECT_EQ(plain.device, "auto");
  EXPECT_EQ(plain.train.optimizer, "adamw");
  EXPECT_EQ(plain.train.masters, "float32");
  EXPECT_EQ(plain.train.epochs, std::nullopt);
  const RunRecipe recipe =
      parse_run_recipe("version: 1\ndevice: cuda:1\nmodel: {kind: seq2seq}\n" + rule +
                           "train: {epochs: 2.5, optimizer: 'mine:muon', masters: model}\n",
                       "r");
  EXPECT_EQ(recipe.device, "cuda:1");
  EXPECT_EQ(recipe.model.kind, "seq2seq");
  EXPECT_EQ(recipe.train.epochs, 2.5);
  EXPECT_EQ(recipe.train.optimizer, "mine:muon");
  EXPECT_EQ(recipe.train.masters, "model");
}

TEST(RunRecipe, RatesOfWeightsAreRelativeUnlessOneIsGiven) {
  const std::string rule = "version: 1\nlayers:\n  - {match: a, weight: {dtype: int4}}\n";
  const TrainSection plain = parse_run_recipe(rule, "r").train;
  EXPECT_EQ(plain.learning_rate, std::nullopt);
  EXPECT_GT(plain.relative_learning_rate, 0.0);
  EXPECT_EQ(parse_run_recipe(rule + "train: {learning_rate: 0.5}\n", "r").train.learning_rate, 0.5);
  EXPECT_EQ(parse_run_recipe(rule + "train: {relative_learning_rate: 0.5}\n", "r")
                .train.relative_learning_rate,
            0.5);
  EXPECT_THROW(
      parse_run_recipe(rule + "train: {learning_rate: 0.5, relative_learning_rate: 0.5}\n", "r"),
      RecipeError);
  EXPECT_THROW(parse_run_recipe(rule + "train: {optimizer: sgd}\n", "r"), RecipeError);
  EXPECT_NO_THROW(parse_run_recipe(rule + "train: {optimizer: sgd, steps: 0}\n", "r"));
}

TEST(RunRecipe, DataComeFromOneOrSeveralSources) {
  const std::string rule = "layers:\n  - {match: a, weight: {dtype: int4}}\n";
  const DataSection one = parse_run_recipe("version: 1\n" + rule + "data: {train: a}\n", "r").data;
  EXPECT_EQ(one.train, "a");
  EXPECT_TRUE(one.sources.empty());
  EXPECT_EQ(one.loss_on, "answers");
  EXPECT_FALSE(one.packing);
  const DataSection part =
      parse_run_recipe("version: 1\n" + rule +
                           "data: {train: {path: o/d, subset: en, split: test, column: body}}\n",
                       "r")
          .data;
  EXPECT_EQ(part.train, "");
  ASSERT_EQ(part.sources.size(), 1u);
  EXPECT_EQ(part.sources[0].path, "o/d");
  EXPECT_EQ(part.sources[0].subset, "en");
  EXPECT_EQ(part.sources[0].split, "test");
  EXPECT_EQ(part.sources[0].column, "body");
  const DataSection several =
      parse_run_recipe("version: 1\n" + rule +
                           "data: {train: [{path: a, weight: 3}, {path: b}], loss_on: all, "
                           "packing: true}\n",
                       "r")
          .data;
  ASSERT_EQ(several.sources.size(), 2u);
  EXPECT_EQ(several.sources[0].weight, 3.0);
  EXPECT_EQ(several.sources[1].weight, 1.0);
  EXPECT_EQ(several.loss_on, "all");
  EXPECT_TRUE(several.packing);
}

TEST(RunRecipe, SaysWhatDevicesOptimizersAndSourcesMayBe) {
  const std::string text =
      "version: 1\ndevice: gpu\nlayers:\n  - {match: a, weight: {dtype: int4}}\n"
      "train: {steps: 4, epochs: 1, optimizer: ':f'}\ndata: {train: [{weight: 2}]}\n";
  try {
    parse_run_recipe(text, "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_EQ(std::string(error.what()),
              "r:2:9: device must be auto, cpu, cuda or cuda:N, but is gpu\n"
              "r:5:27: train.epochs must not be given beside steps, but is 1\n"
              "r:5:41: train.optimizer must be adamw, adamw_8bit, muon, sgd or module:function, "
              "but is :f\n"
              "r:6:16: data.train[0].path must name data, but is empty");
  }
  for (const char* device : {"cuda:", "cuda:x", "cuda:1000", "cuda0"})
    EXPECT_THROW(parse_run_recipe("version: 1\ndevice: '" + std::string(device) +
                                      "'\nlayers:\n  - {match: a, weight: {dtype: int4}}\n",
                                  "r"),
                 RecipeError)
        << device;
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
  std::vector<std::string> names = format_names();
  names.insert(names.end(), {"mxfp4", "dense"});  // which Python writes
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
  try {
    parse_run_recipe(head + "gguf, onnx, gguf]\n", "r");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_STREQ(error.what(), "r:4:22: export must list gguf once, but has it again");
  }
}

TEST(RunRecipe, ItsCoreIsWhatProgramsRead) {
  const std::string text =
      "version: 1\nmodel: {path: m}\nlayers:\n  - {match: a, weight: {dtype: int4}, "
      "input: {dtype: int8, granularity: tensor}}\ninitialize: {method: gptq}\n"
      "schedule: [{until: 100%, weight: int4}]\n"
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
