#include <fstream>
#include <functional>

#include "tests/qat/checkpoint/checkpoint_test.h"
#include "tests/qat/message_of.h"
#include "tests/qat/preset_weights.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

class CheckpointContentTest : public CheckpointTest {
 protected:
  // What load_checkpoint says after `change` to the tensors of the file.
  std::string complaint(const std::function<void(NamedTensors&)>& change) {
    save_checkpoint(folder_, {{random_layer("net.a", group_spec(4, 32), 8, 64)}, {}});
    NamedTensors tensors = load_safetensors(folder_ + "/model.safetensors");
    change(tensors);
    save_safetensors(folder_ + "/model.safetensors", tensors);
    try {
      load_checkpoint(folder_);
    } catch (const FileError& error) {
      return std::string(error.what()).substr(folder_.size() + 2);
    }
    return "";
  }
};

TEST_F(CheckpointContentTest, EveryWidthGranularityAndGridComesBack) {
  Checkpoint written;
  int count = 0;
  for (int bits = 2; bits <= 8; ++bits)
    for (const Grid grid : {Grid::narrow, Grid::full, Grid::extreme, Grid::asymmetric})
      for (const Granularity granularity :
           {Granularity::tensor, Granularity::channel, Granularity::group, Granularity::block}) {
        QuantSpec spec = group_spec(bits, 16);
        spec.grid = grid;
        spec.granularity = granularity;
        spec.group_size = granularity == Granularity::group ? 16 : 0;
        if (granularity == Granularity::block) spec.block = {4, 16};
        written.layers.push_back(random_layer("l" + std::to_string(100 + count++), spec, 8, 48));
      }
  written.others["bias"] = at::randn({3});
  save_checkpoint(folder_, written);
  const Checkpoint read = load_checkpoint(folder_);
  ASSERT_EQ(read.layers.size(), written.layers.size());
  for (size_t i = 0; i < read.layers.size(); ++i) {
    const QuantizedWeights &a = written.layers[i], &b = read.layers[i];
    EXPECT_EQ(a.name, b.name);
    EXPECT_TRUE(at::equal(a.codes, b.codes)) << describe(a.weight);
    EXPECT_TRUE(at::equal(dequantize_weights(a), dequantize_weights(b))) << describe(a.weight);
    EXPECT_EQ(a.weight.grid, b.weight.grid);
  }
  ASSERT_EQ(read.others.size(), 1u);
  EXPECT_TRUE(at::equal(read.others.at("bias"), written.others.at("bias")));
}

int version_of(const std::string& folder) {
  std::ifstream config(folder + "/config.json");
  return nlohmann::json::parse(config)["quantization_config"]["version"];
}

TEST_F(CheckpointContentTest, EveryPresetComesBack) {
  Checkpoint written;
  for (const Preset& preset : presets())
    written.layers.push_back(preset_weights(preset.name, preset.spec, at::randn({8, 512})));
  save_checkpoint(folder_, written);
  EXPECT_EQ(version_of(folder_), 2);
  const Checkpoint read = load_checkpoint(folder_);
  ASSERT_EQ(read.layers.size(), written.layers.size());
  for (const QuantizedWeights& a : written.layers)
    for (const QuantizedWeights& b : read.layers) {
      if (a.name != b.name) continue;
      EXPECT_EQ(describe(a.weight), describe(b.weight));
      EXPECT_EQ(a.weight.scale, b.weight.scale);
      EXPECT_TRUE(at::equal(a.codes.to(at::kFloat), b.codes.to(at::kFloat))) << a.name;
      EXPECT_TRUE(at::equal(dequantize_weights(a), dequantize_weights(b))) << a.name;
      EXPECT_EQ(bits_per_weight(a), bits_per_weight(b));
    }
}

TEST_F(CheckpointContentTest, TypesOfVersion1AreWrittenInIt) {
  save_checkpoint(folder_, of_width(4));
  EXPECT_EQ(version_of(folder_), 1);
}

TEST_F(CheckpointContentTest, RefusesScalesOfTwoLevelsThatDoNotFit) {
  const auto complaint_about = [&](const char* preset,
                                   const std::function<void(NamedTensors&)>& change) {
    save_checkpoint(folder_,
                    {{preset_weights("a", find_preset(preset)->spec, at::randn({8, 512}))}, {}});
    NamedTensors tensors = load_safetensors(folder_ + "/model.safetensors");
    change(tensors);
    save_safetensors(folder_ + "/model.safetensors", tensors);
    const std::string text = message_of([&] { load_checkpoint(folder_); });
    return text.empty() ? text : text.substr(folder_.size() + 2);
  };
  EXPECT_EQ(complaint_about("nvfp4", [](auto& t) { t.erase("a.outer_scale"); }),
            "a.outer_scale must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint_about("q4_k", [](auto& t) { t.erase("a.offset"); }),
            "a.offset must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint_about("q4_k", [](auto& t) { t["a.outer_offset"] = at::ones({8, 2}); }),
            "a.outer_offset must have 16 elements in float16.");
  EXPECT_EQ(complaint_about("mxfp4", [](auto& t) { t["a.scale"] = at::ones({8, 16}); }),
            "a.scale must be Byte.");
  EXPECT_EQ(complaint_about(
                "mxfp6_e2m3",
                [](auto& t) { t["a.codes"] = at::full({8, 512}, 9.0f).to(at::kFloat8_e4m3fn); }),
            "a.codes must be numbers of fp6_e2m3.");
}

TEST_F(CheckpointContentTest, Fp8AndInputsComeBack) {
  QuantizedWeights layer = random_layer("a", QuantSpec{}, 8, 16);
  layer.weight.grid = Grid::e5m2;
  layer.codes = at::randn({8, 16}).to(at::kFloat8_e5m2);
  layer.input = int8_input(false);
  layer.input_scale = at::full({1}, 0.5f);
  save_checkpoint(folder_, {{layer}, {}});
  const Checkpoint read = load_checkpoint(folder_);
  EXPECT_TRUE(at::equal(dequantize_weights(read.layers[0]), dequantize_weights(layer)));
  EXPECT_EQ(read.layers[0].input_scale->item<float>(), 0.5f);
}

TEST_F(CheckpointContentTest, WritesTheFoldersOfOtherFormats) {
  save_checkpoint(folder_, {{random_layer("a", group_spec(4, 32), 32, 64)}, {}}, "gptq",
                  {"lm_head"});
  EXPECT_EQ(load_safetensors(folder_ + "/model.safetensors").count("a.qweight"), 1u);
  EXPECT_TRUE(fs::exists(folder_ + "/quantize_config.json"));
  EXPECT_THROW(load_checkpoint(folder_), FileError);  // not what it reads
  EXPECT_THROW(
      save_checkpoint(folder_, {{random_layer("a", group_spec(4, 32), 32, 64)}, {}}, "gguf"),
      std::invalid_argument);
}

TEST_F(CheckpointContentTest, WhatIsMissingOrMisshapenIsNamed) {
  EXPECT_EQ(complaint([](NamedTensors& t) { t.erase("net.a.scale"); }),
            "net.a.scale must be in the checkpoint, but is missing.");
  EXPECT_EQ(complaint([](NamedTensors& t) { t["net.a.codes"] = t["net.a.codes"].slice(0, 1); }),
            "net.a.codes must be int32 [8, 8].");
  EXPECT_EQ(complaint([](NamedTensors& t) { t["net.a.scale"] = t["net.a.scale"].slice(1, 1); }),
            "net.a.scale must have 16 elements.");
}

TEST_F(CheckpointContentTest, CodesBeyondTheGridAreRefused) {
  QuantSpec spec = group_spec(4, 32);
  spec.grid = Grid::narrow;
  QuantizedWeights layer = random_layer("a", spec, 8, 64);
  layer.codes[0][0] = -8;
  save_checkpoint(folder_, {{layer}, {}});
  EXPECT_THROW(load_checkpoint(folder_), FileError);
}

TEST_F(CheckpointContentTest, AFolderOfAnotherKindIsRefused) {
  EXPECT_THROW(load_checkpoint(folder_), FileError);
  fs::create_directories(folder_);
  std::ofstream(folder_ + "/config.json")
      << R"({"quantization_config": {"quant_method": "torchqat", "version": 9}})";
  EXPECT_THROW(load_checkpoint(folder_), FileError);
}

TEST_F(CheckpointContentTest, Fp8CodesOfAnotherTypeAreRefused) {
  QuantizedWeights layer = random_layer("a", QuantSpec{}, 8, 16);
  layer.weight.grid = Grid::e4m3;
  for (const auto dtype : {at::kFloat8_e5m2, at::kChar, at::kFloat}) {
    layer.codes = at::ones({8, 16}).to(dtype);
    save_checkpoint(folder_, {{layer}, {}});
    EXPECT_EQ(message_of([&] { load_checkpoint(folder_); }),
              folder_ + ": a.codes must be Float8_e4m3fn.");
  }
}

TEST_F(CheckpointContentTest, ATensorThatWouldTakeAnothersPlaceIsRefused) {
  Checkpoint checkpoint = of_width(4);
  checkpoint.others["net.a.scale"] = at::ones({3});
  EXPECT_EQ(message_of([&] { save_checkpoint(folder_, checkpoint); }),
            "net.a.scale must be the name of one tensor, but is that of a quantized layer's and of "
            "another one.");
  checkpoint.others.clear();
  checkpoint.layers.push_back(checkpoint.layers[0]);
  EXPECT_THROW(save_checkpoint(folder_, checkpoint), std::invalid_argument);
  EXPECT_FALSE(fs::exists(folder_));
}

}  // namespace
}  // namespace qat
