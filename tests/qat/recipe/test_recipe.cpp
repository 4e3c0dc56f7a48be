#include <gtest/gtest.h>

#include <string>

#include "qat/recipe/recipe.h"

namespace qat {
namespace {

const std::string kRule = "layers:\n  - match: \"*\"\n    weight: {dtype: int4, group_size: 32}\n";

std::string problems_of(const std::string& text) {
  try {
    parse_recipe(text, "r.yaml");
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

TEST(Recipe, ReadsEveryKeyOfARule) {
  const Recipe recipe = parse_recipe(
      "version: 1\n"
      "layers:\n"
      "  - match: a\n"
      "    weight: {dtype: int3, group_size: 64, grid: signed, scale: learned, scale_dtype: "
      "float16}\n"
      "    input: {dtype: int8, granularity: tensor, symmetric: false, scale: mse}\n"
      "  - match: b\n"
      "    weight: {dtype: int4, block: [16, 32], symmetric: false}\n"
      "  - match: c\n"
      "    weight: float\n",
      "r.yaml");
  const QuantSpec& a = *recipe.layers[0].weight.spec;
  EXPECT_EQ(describe(a), "int3 group 64 signed, learned scale in float16");
  const QuantSpec& input = *recipe.layers[0].input.spec;
  EXPECT_EQ(describe(input), "int8 tensor asymmetric, mse scale in float32");
  EXPECT_FALSE(input.dynamic);
  EXPECT_EQ(describe(*recipe.layers[1].weight.spec),
            "int4 block 16x32 asymmetric, minmax scale in bfloat16");
  EXPECT_TRUE(recipe.layers[2].weight.given);
  EXPECT_FALSE(recipe.layers[2].weight.spec);
}

TEST(Recipe, ReadsScheduleAndBounds) {
  const Recipe recipe = parse_recipe("version: 1\n" + kRule +
                                         "schedule:\n"
                                         "  - {until: 10%, weight: float}\n"
                                         "  - {until: 40, weight: int8, input: float}\n"
                                         "  - {until: 100%, weight: int4}\n",
                                     "r.yaml");
  EXPECT_EQ(recipe.schedule[0].weight_bits, kFloat);
  EXPECT_EQ(recipe.schedule[0].input_bits, std::nullopt);
  EXPECT_EQ(recipe.schedule[1].until.step_of(1000), 40);
  EXPECT_EQ(recipe.schedule[1].input_bits, kFloat);
  EXPECT_EQ(recipe.schedule[0].until.step_of(305), 31);
}

TEST(Recipe, ReportsEveryProblemAtOnceWithItsPlace) {
  EXPECT_EQ(
      problems_of("version: 2\n"
                  "layers:\n"
                  "  - match: \"*\"\n"
                  "    weight: {dtype: int9, gruop_size: 32}\n"
                  "train: {steps: many, steps: 3}\n"
                  "trian: {}\n"),
      "r.yaml:1:10: version must be a whole number from 1 to 1, but is 2\n"
      "r.yaml:4:21: layers[0].weight.dtype must be int2, int3, int4, int5, int6, int7, int8, "
      "fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2, nvfp4, mxfp4, mxfp6_e2m3, mxfp6_e3m2, "
      "mxfp8_e4m3, mxfp8_e5m2, q2_k, q3_k, q4_k, q5_k, q6_k, q4_0, q4_1, q5_0, q5_1, q8_0, q2_0, "
      "tq2_0, iq4_nl or iq4_xs, but is int9\n"
      "r.yaml:4:27: layers[0].weight.gruop_size is not a known key; did you mean "
      "layers[0].weight.group_size?\n"
      "r.yaml:5:16: train.steps must be a whole number from 0 to 1000000000, but is many\n"
      "r.yaml:5:22: train.steps is given twice\n"
      "r.yaml:6:1: trian is not a known key; did you mean train?");
}

TEST(Recipe, ASecondDocumentIsAnError) {
  EXPECT_EQ(
      problems_of("version: 1\nlayers:\n  - {match: a, weight: float}\n---\ntrain: {steps: 3}\n"),
      "r.yaml:5:1: a recipe must be one document, but another follows");
}

TEST(Recipe, InputsMayHaveAScalePerGroup) {
  const Recipe recipe = parse_recipe(
      "version: 1\nlayers:\n  - {match: a, input: {dtype: int8, group_size: 32}}\n", "r.yaml");
  const QuantSpec& input = *recipe.layers[0].input.spec;
  EXPECT_EQ(describe(input), "int8 group 32 narrow, dynamic scale in float32");
  EXPECT_EQ(block_shape(input), (std::array<int64_t, 2>{1, 32}));
}

struct Fault {
  std::string text;
  std::string message;
};

void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.message; }

class EachFault : public testing::TestWithParam<Fault> {};

TEST_P(EachFault, HasItsSentence) { EXPECT_EQ(problems_of(GetParam().text), GetParam().message); }

INSTANTIATE_TEST_SUITE_P(
    Recipe, EachFault,
    testing::Values(
        Fault{"", "r.yaml:1:1: a recipe must be a map of keys, but is empty"},
        Fault{"- 1\n", "r.yaml:1:1: a recipe must be a map of keys, but is [1]"},
        Fault{"version: [1\n",
              "r.yaml:2:1: the file must be YAML, but end of sequence flow not found"},
        Fault{kRule, "r.yaml:1:1: version must be 1, but is empty"},
        Fault{"version: 1\n", "r.yaml:1:1: layers must list at least one rule, but is empty"},
        Fault{"version: 1\nlayers: 3\n",
              "r.yaml:2:9: layers must be a list, but is 3\nr.yaml:2:9: layers must list at least "
              "one rule, but is 3"},
        Fault{"version: 1\nlayers:\n  - match: a\n",
              "r.yaml:3:5: layers[0].weight must be given, or input, but is empty"},
        Fault{"version: 1\nlayers:\n  - match: a\n    weight: int4\n",
              "r.yaml:4:13: layers[0].weight must be a map with a dtype, or float, but is int4"},
        Fault{
            "version: 1\nlayers:\n  - match: a\n    weight: {group_size: 32}\n",
            "r.yaml:4:13: layers[0].weight.dtype must be int2, int3, int4, int5, int6, int7, int8, "
            "fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2, nvfp4, mxfp4, mxfp6_e2m3, "
            "mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, q2_k, q3_k, q4_k, q5_k, q6_k, q4_0, q4_1, q5_0, "
            "q5_1, q8_0, q2_0, tq2_0, iq4_nl or iq4_xs, but is empty"},
        Fault{"version: 1\nlayers:\n  - match: a\n    weight: {dtype: int4, granularity: group}\n",
              "r.yaml:4:13: layers[0].weight.group_size must be given for granularity group, but "
              "is empty"},
        Fault{"version: 1\nlayers:\n  - match: a\n    weight: {dtype: int4, granularity: channel, "
              "group_size: 8}\n",
              "r.yaml:4:61: layers[0].weight.group_size must not be given for granularity channel, "
              "but is 8"},
        Fault{"version: 1\nlayers:\n  - match: a\n    weight: {dtype: int4, symmetric: false, "
              "grid: full}\n",
              "r.yaml:4:51: layers[0].weight.grid must not be given when symmetric is false, but "
              "is full"},
        Fault{"version: 1\nlayers:\n  - match: a\n    weight: {dtype: int4, block: [1]}\n",
              "r.yaml:4:34: layers[0].weight.block must be two positive sides, such as [128, 128], "
              "but is [1]"},
        Fault{
            "version: 1\nlayers:\n  - match: a\n    input: {dtype: int8, group_size: 32, dynamic: "
            "false}\n",
            "r.yaml:4:51: layers[0].input.dynamic must be true for granularity group, but is "
            "false"},
        Fault{"version: 1\nlayers:\n  - match: a\n    input: {dtype: int8, dynamic: false}\n",
              "r.yaml:4:35: layers[0].input.dynamic must be true for granularity token, but is "
              "false"},
        Fault{"version: 1\nlayers:\n  - match: a\n    input: {dtype: int8, scale: mse}\n",
              "r.yaml:4:33: layers[0].input.scale must be minmax for a dynamic input, but is mse"},
        Fault{"version: 1\n" + kRule + "schedule:\n  - {until: 120%}\n",
              "r.yaml:6:13: schedule[0].until must be a percentage from 0% to 100% or a step from "
              "0 on, but is 120%"},
        Fault{"version: 1\n" + kRule + "schedule:\n  - {until: 50%}\n  - {until: 20%}\n",
              "r.yaml:7:13: schedule[1].until must lie after the stage before it, but is 20%"},
        Fault{"version: 1\n" + kRule + "schedule:\n  - {weight: int1}\n",
              "r.yaml:6:14: schedule[0].weight must be int2, int3, int4, int5, int6, int7, int8 or "
              "float, but is int1"},
        Fault{"version: 1\n" + kRule + "distill: {loss: l2}\n",
              "r.yaml:5:17: distill.loss must be forward_kl or cross_entropy, but is l2"},
        Fault{"version: 1\n" + kRule + "distill: {temperature: hot}\n",
              "r.yaml:5:24: distill.temperature must be a number from 0.01 to 100, but is hot"},
        Fault{"version: 1\n" + kRule + "train: {weight_cache: all}\n",
              "r.yaml:5:23: train.weight_cache must be auto, none, codes or weights, but is all"},
        Fault{"version: 1\n" + kRule + "train: {control: maybe}\n",
              "r.yaml:5:18: train.control must be true or false, but is maybe"},
        Fault{"version: 1\n" + kRule + "mode: auto\n",
              "r.yaml:5:7: mode must be recipe unless evaluate.accept has limits, but is auto"},
        Fault{"version: 1\n" + kRule + "engine: vllm\nexport: [gguf]\n",
              "r.yaml:6:9: export must list compressed-tensors, gptq or awq, which is what engine: "
              "vllm "
              "loads, but is [gguf]"},
        Fault{"version: 1\n" + kRule + "evaluate: {accept: {task_drop: 0.1}}\n",
              "r.yaml:5:32: evaluate.accept.task_drop must not be given without evaluate.task, but "
              "is 0.1"},
        Fault{"version: 1\n" + kRule + "model: {kind: detector}\n",
              "r.yaml:5:15: model.kind must be causal_lm, classifier, sentence_encoder or seq2seq, "
              "but is "
              "detector"},
        Fault{"version: 1\n" + kRule + "train: {lora: {rank: 4}}\n",
              "r.yaml:5:15: train.lora must not be given unless parameters is lora, but is {rank: "
              "4}"},
        Fault{"version: 1\n" + kRule + "train: {oscillation: {method: stop}}\n",
              "r.yaml:5:31: train.oscillation.method must be none, dampen or freeze, but is stop"},
        Fault{"version: 1\n" + kRule + "train: 3\n",
              "r.yaml:5:8: train must be a map of keys, but is 3"},
        Fault{"version: 1\n" + kRule + "train: {cpu_offload: true}\n",
              "r.yaml:5:22: train.cpu_offload must be false unless strategy is fsdp, but is true"},
        Fault{"version: 1\n" + kRule +
                  "train: {strategy: fsdp, monitor: true, weight_cache: codes, "
                  "oscillation: {method: freeze}}\n",
              "r.yaml:5:34: train.monitor must be false where strategy is fsdp, but is true\n"
              "r.yaml:5:54: train.weight_cache must be none where strategy is fsdp, but is codes\n"
              "r.yaml:5:74: train.oscillation must have method none where strategy is fsdp, but is "
              "{method: freeze}"},
        Fault{
            "version: 1\n" + kRule +
                "model: {dtype: bfloat16}\ntrain: {mixed_precision: bfloat16}\n",
            "r.yaml:6:26: train.mixed_precision must be none unless model.dtype is float32, but is "
            "bfloat16"},
        Fault{
            "version: 1\nmodel: {dtype: bfloat16}\nlayers:\n"
            "  - {match: a, weight: {dtype: int4, scale: learned}}\ntrain: {strategy: fsdp}\n",
            "r.yaml:5:19: train.strategy must be ddp unless model.dtype is float32 or no scale is "
            "learned (with mixed_precision: bfloat16, float32 weights compute in it), but is fsdp"},
        Fault{"version: 1\n" + kRule + "train: {parameters: scales}\n",
              "r.yaml:5:21: train.parameters must be all unless every weight has a learned scale, "
              "but "
              "is scales"},
        Fault{"version: 1\nlayers:\n  - {match: a, weight: {dtype: int4, scale: learned}}\n"
              "schedule: [{until: 100%, weight: int4}]\ntrain: {parameters: scales}\n",
              "r.yaml:5:21: train.parameters must be all where a schedule changes widths, and so "
              "codes, but is scales"},
        Fault{
            "version: 1\n" + kRule +
                "model: {kind: sentence_encoder}\ntrain: {control: true, "
                "parameters: lora, oscillation: {method: dampen}}\n",
            "r.yaml:6:18: train.control must be false for a sentence_encoder, but is true\n"
            "r.yaml:6:55: train.oscillation must have method none unless parameters is all, but is "
            "{method: dampen}"},
        Fault{
            "version: 1\nlayers:\n"
            "  - {match: a, weight: {dtype: fp8_e4m3, symmetric: true}}\n"
            "  - {match: b, weight: {dtype: int4, granularity: channel, block: [2, 2]}}\n",
            "r.yaml:3:53: layers[0].weight.symmetric must not be given for a dtype that is a "
            "float, "
            "but is true\n"
            "r.yaml:4:67: layers[1].weight.block must not be given for granularity channel, but is "
            "[2, 2]"},
        Fault{
            "version: 1\n" + kRule + "export: [bin]\n",
            "r.yaml:5:10: export must list only compressed-tensors, compressed-tensors-0.18, gptq, "
            "gptq_v2, awq, gguf, mlx, modelopt, onnx, safetensors, mxfp4 or dense, but has bin"},
        Fault{"version: 1\n" + kRule + "evaluate: {compare: [int1]}\n",
              "r.yaml:5:22: evaluate.compare must be int2, int3, int4, int5, int6, int7 or int8, "
              "but is int1"},
        Fault{"version: 1\n" + kRule + "model: {path: a, scratch: {}}\n",
              "r.yaml:5:27: model.scratch must not stand beside path, but is {}"},
        Fault{"version: 1\n" + kRule + "model: {scratch: {heads: 3}}\n",
              "r.yaml:5:18: model.scratch.hidden_size must be an even multiple of heads, 3, but is "
              "empty\n"
              "r.yaml:5:18: model.scratch.kv_heads must divide heads, 3, but is empty"}));

TEST(Recipe, AMissingFileIsOneSentence) {
  try {
    load_recipe("no/such/recipe.yaml");
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_STREQ(error.what(),
                 "no/such/recipe.yaml:1:1: the recipe must be a readable file that is not empty");
  }
}

}  // namespace
}  // namespace qat
