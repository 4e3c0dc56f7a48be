#include <gtest/gtest.h>

#include "qat/recipe/plan.h"
#include "qat/recipe/presets.h"
#include "tests/qat/message_of.h"
#include "tests/qat/recipe_of.h"

namespace qat {
namespace {

QuantSpec weight_of(const std::string& settings) {
  return *recipe_of("{match: a, weight: {" + settings + "}}").layers.front().weight.spec;
}

std::string problem_of(const std::string& settings, const std::string& rest = "") {
  const std::string text =
      message_of([&] { recipe_of("{match: a, weight: {" + settings + "}}", rest); });
  const size_t begin = text.find("layers[0]");
  return begin == std::string::npos ? text : text.substr(begin);
}

TEST(Presets, NameLevelsGroupsAndScales) {
  const std::pair<const char*, const char*> kExpected[] = {
      {"nvfp4", "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1"},
      {"mxfp4", "minmax fp4_e2m1 1x32 e8m0_floor"},
      {"mxfp6_e2m3", "minmax fp6_e2m3 1x32 e8m0_floor"},
      {"mxfp6_e3m2", "minmax fp6_e3m2 1x32 e8m0_floor"},
      {"mxfp8_e4m3", "minmax fp8_e4m3 1x32 e8m0_floor"},
      {"mxfp8_e5m2", "minmax fp8_e5m2 1x32 e8m0_floor"},
      {"q2_k", "minmax int2 offset 1x16 int4*float16@1x256"},
      {"q3_k", "minmax int3 signed 1x16 int6_signed*float16@1x256"},
      {"q4_k", "minmax int4 offset 1x32 int6*float16@1x256"},
      {"q5_k", "minmax int5 offset 1x32 int6*float16@1x256"},
      {"q6_k", "minmax int6 signed 1x16 int8*float16@1x256"},
      {"q4_0", "minmax int4 signed 1x32 float16"},
      {"q4_1", "minmax int4 offset 1x32 float16"},
      {"q5_0", "minmax int5 signed 1x32 float16"},
      {"q5_1", "minmax int5 offset 1x32 float16"},
      {"q8_0", "minmax int8 narrow 1x32 float16"},
      {"q2_0", "minmax int2 signed 1x64 float16"},
      {"tq2_0", "minmax int2 narrow 1x256 float16"},
      {"iq4_nl", "minmax iq4_nl 1x32 float16"},
      {"iq4_xs", "minmax iq4_nl 1x32 int6_signed*float16@1x256"},
  };
  ASSERT_EQ(presets().size(), std::size(kExpected));
  for (const auto& [name, text] : kExpected) {
    const QuantSpec spec = weight_of(std::string("dtype: ") + name);
    EXPECT_EQ(weight_quantizer_of(spec, spec.bits, 64, 512).text(), text);
    EXPECT_EQ(preset_of(spec), find_preset(name));
  }
  EXPECT_EQ(find_preset("int4"), nullptr);
  EXPECT_EQ(preset_of(weight_of("dtype: int4, group_size: 32")), nullptr);
}

TEST(Presets, CanBeSpelledOut) {
  EXPECT_EQ(weight_of("dtype: fp4_e2m1, group_size: 16, scale_dtype: e4m3, "
                      "outer_scale: {dtype: float32}"),
            weight_of("dtype: nvfp4"));
  EXPECT_EQ(weight_of("dtype: fp6_e2m3, group_size: 32, scale_dtype: e8m0_floor"),
            weight_of("dtype: mxfp6_e2m3"));
  const QuantSpec own = weight_of(
      "dtype: int4, group_size: 32, scale_dtype: e4m3, "
      "outer_scale: {dtype: float16, group_size: 128}, scale: learned");
  EXPECT_EQ(describe(own), "int4 group 32 narrow, learned scale in e4m3*float16");
  EXPECT_EQ(own.scale.outer_block, (std::array<int64_t, 2>{1, 128}));
}

TEST(Presets, LeaveTheRoundingOfPowersOfTwoAndTheRangeOpen) {
  const QuantSpec spec = weight_of("dtype: mxfp4, scale_dtype: e8m0_even, scale: learned");
  EXPECT_EQ(describe(spec), "fp4_e2m1 group 32, learned scale in e8m0_even");
  EXPECT_EQ(preset_of(spec), find_preset("mxfp4"));
  EXPECT_EQ(weight_of("dtype: nvfp4, scale: mse").range, Range::fixed);
}

TEST(Presets, RefuseWhatTheyFix) {
  EXPECT_EQ(problem_of("dtype: nvfp4, group_size: 32"),
            "layers[0].weight.group_size must not be given for nvfp4, which has groups of 16 and "
            "scales of its own, but is 32");
  EXPECT_EQ(problem_of("dtype: q4_k, scale_dtype: float16"),
            "layers[0].weight.scale_dtype must not be given for q4_k, but is float16");
  EXPECT_EQ(problem_of("dtype: mxfp4, scale_dtype: bfloat16"),
            "layers[0].weight.scale_dtype must be e8m0_floor, e8m0_even or e8m0_ceil, but is "
            "bfloat16");
  EXPECT_EQ(problem_of("dtype: int4, scale_dtype: e8m0_floor, symmetric: false, group_size: 32"),
            "layers[0].weight.scale_dtype must be float32, bfloat16 or float16 for the grid "
            "asymmetric, but is e8m0_floor");
  EXPECT_EQ(problem_of("dtype: int4, scale_dtype: e4m3, grid: signed, group_size: 32"),
            "layers[0].weight.scale_dtype must be float32, bfloat16 or float16 for the grid "
            "signed, but is e4m3");
  EXPECT_EQ(problem_of("dtype: int4, group_size: 32, outer_scale: {dtype: float32}"),
            "layers[0].weight.outer_scale must not be given unless scale_dtype is e4m3, but is "
            "{dtype: float32}");
  EXPECT_EQ(problem_of("dtype: int4, group_size: 32, scale_dtype: e4m3, "
                       "outer_scale: {group_size: 48}"),
            "layers[0].weight.outer_scale must have a group_size that is a multiple of the "
            "weight's, but is {group_size: 48}");
}

TEST(Presets, GptqAndTheLikeTakeThemAll) {
  const std::string gptq = "initialize: {method: gptq}\n";
  for (const Preset& preset : presets())
    EXPECT_EQ(problem_of(std::string("dtype: ") + preset.name, gptq), "") << preset.name;
}

TEST(Presets, FourOverSixIsARuleOfNvfp4) {
  const QuantSpec spec = weight_of("dtype: nvfp4, scale_dtype: e4m3_four_over_six");
  EXPECT_EQ(quantizer_of(spec, 4, Quantizer::Mode::minmax).text(),
            "minmax fp4_e2m1 1x16 e4m3_four_over_six*float32@-1x-1");
  EXPECT_EQ(quantizer_of(spec, 8, Quantizer::Mode::minmax).text(),
            "minmax int8 narrow 1x16 e4m3*float32@-1x-1");
  EXPECT_EQ(preset_of(spec), find_preset("nvfp4"));
  EXPECT_EQ(weight_of("dtype: fp4_e2m1, group_size: 16, scale_dtype: e4m3_four_over_six, "
                      "outer_scale: {dtype: float32}"),
            spec);
  for (const char* weight : {"dtype: int4, group_size: 16, outer_scale: {dtype: float32}",
                             "dtype: fp4_e2m1, group_size: 16"})
    EXPECT_EQ(problem_of(std::string(weight) + ", scale_dtype: e4m3_four_over_six"),
              "layers[0].weight.scale_dtype must be e4m3 unless the weight is fp4_e2m1 under an "
              "outer_scale, but is e4m3_four_over_six");
  const std::string refusal = message_of(
      [] { recipe_of("{match: a, input: {dtype: nvfp4, scale_dtype: e4m3_four_over_six}}"); });
  EXPECT_NE(
      refusal.find("layers[0].input.scale_dtype must be e4m3 for an input, whose scales engines "
                   "find as a / 6, but is e4m3_four_over_six"),
      std::string::npos)
      << refusal;
}

TEST(Presets, OfInputsAreFoundInEachCall) {
  const auto input = [](const std::string& settings) {
    return *recipe_of("{match: a, input: {" + settings + "}}").layers.front().input.spec;
  };
  const QuantSpec spec = input("dtype: mxfp8_e4m3");
  EXPECT_TRUE(spec.dynamic);
  EXPECT_EQ(input_quantizer_of(spec, spec.bits, 64).text(), "minmax fp8_e4m3 1x32 e8m0_floor");
  EXPECT_EQ(input_quantizer_of(input("dtype: nvfp4"), 4, 64).text(),
            "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1");
  const auto problem = [&](const std::string& settings) {
    return message_of([&] { input(settings); });
  };
  EXPECT_NE(problem("dtype: q4_k").find("layers[0].input.dtype must be int2"), std::string::npos);
  EXPECT_NE(problem("dtype: mxfp4, dynamic: false")
                .find("layers[0].input.dynamic must be true for mxfp4, whose groups have a scale "
                      "each, but is false"),
            std::string::npos);
}

Plan plan_of(const std::string& layers, const std::vector<LayerInfo>& infos,
             const std::string& rest = "") {
  return make_plan(recipe_of(layers, rest), infos);
}

const std::vector<LayerInfo> kBlock{
    {"h.0.q_proj", "Linear", 512, 64},    {"h.0.k_proj", "Linear", 512, 32},
    {"h.0.v_proj", "Linear", 512, 32},    {"h.0.o_proj", "Linear", 512, 64},
    {"h.0.gate_proj", "Linear", 512, 96}, {"h.0.up_proj", "Linear", 512, 96}};

TEST(Plan, FusedLayersShareAnOuterScaleOfTheWholeWeight) {
  const Plan plan = plan_of("{match: \"*\", weight: {dtype: nvfp4}}", kBlock);
  const std::vector<std::string> attention{"h.0.q_proj", "h.0.k_proj", "h.0.v_proj"};
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(plan.layers[i].shares, attention);
  EXPECT_TRUE(plan.layers[3].shares.empty());
  EXPECT_EQ(plan.layers[5].shares, (std::vector<std::string>{"h.0.gate_proj", "h.0.up_proj"}));
  EXPECT_NE(to_text(plan).find("; one outer scale for h.0.gate_proj and h.0.up_proj\n"),
            std::string::npos);
  for (const char* other : {"mxfp4", "q4_k", "fp8_e4m3"})
    for (const LayerPlan& layer :
         plan_of("{match: \"*\", weight: {dtype: " + std::string(other) + "}}", kBlock).layers)
      EXPECT_TRUE(layer.shares.empty());
  const Plan mixed =
      plan_of("{match: \"*\", weight: {dtype: nvfp4}}, {match: h.0.k_proj, weight: {dtype: mxfp4}}",
              kBlock);
  EXPECT_EQ(mixed.layers[0].shares, (std::vector<std::string>{"h.0.q_proj", "h.0.v_proj"}));
  EXPECT_TRUE(mixed.layers[1].shares.empty());
}

TEST(Plan, ASuperBlockDividesTheLayer) {
  EXPECT_EQ(message_of([] {
              plan_of("{match: \"*\", weight: {dtype: q6_k}}", {{"a", "Linear", 576, 64}});
            }),
            "r.yaml:2:10: the columns of an outer scale must divide the layer, but 256 does not "
            "divide in_features 576 of a; give them a rule of their own, with another dtype or "
            "granularity, or float");
}

TEST(Plan, StagesOfOtherWidthsTrainOnIntegers) {
  const Plan plan = plan_of("{match: \"*\", weight: {dtype: nvfp4}}", {{"a", "Linear", 64, 64}},
                            "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n");
  const QuantSpec& spec = *plan.layers[0].weight;
  EXPECT_EQ(weight_quantizer_of(spec, 8, 64, 64).text(),
            "minmax int8 narrow 1x16 e4m3*float32@-1x-1");
  EXPECT_EQ(weight_quantizer_of(spec, 4, 64, 64).text(), "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1");
  EXPECT_EQ(message_of([] {
              plan_of("{match: \"*\", weight: {dtype: q4_k}}", {{"a", "Linear", 256, 64}},
                      "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n");
            }),
            "r.yaml:3:12: schedule[0].weight must be at most int7 for a, whose grid has offsets, "
            "but is int8");
}

TEST(Plan, OtherWidthsAreForIntegersUnderScalesOfOneLevel) {
  const Plan plan =
      plan_of("{match: \"*\", weight: {dtype: nvfp4, scale: learned}}", {{"a", "Linear", 64, 64}});
  EXPECT_EQ(message_of([&] { with_widths(plan, {{"a", 8}}); }),
            "a must have integer weights under scales of one level to take another width, but has "
            "fp4_e2m1 group 16, learned scale in e4m3*float32.");
  const QuantSpec naive = *naive_plan(plan, 8).layers[0].weight;
  EXPECT_EQ(describe(naive), "fp4_e2m1 group 16, minmax scale in e4m3*float32");
  EXPECT_EQ(describe(*float8_plan(plan).layers[0].weight),
            "fp8_e4m3 channel, minmax scale in bfloat16");
}

}  // namespace
}  // namespace qat
