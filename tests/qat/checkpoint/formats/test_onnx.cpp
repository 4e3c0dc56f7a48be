#include <gtest/gtest.h>

#include "qat/checkpoint/formats/onnx.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

TEST(Onnx, WeightsAreTheSecondOperandOfAProduct) {
  const QuantizedWeights q = random_layer("a", group_spec(4, 32), 8, 64);
  const NamedTensors written = onnx_tensors(q);
  EXPECT_TRUE(at::equal(written.at("a.weight"), q.codes.t()));
  EXPECT_TRUE(at::equal(written.at("a.scale"), q.scale.t()));
  EXPECT_EQ(onnx_tensors(random_layer("a", QuantSpec{}, 8, 64)).at("a.scale").sizes(),
            at::IntArrayRef({8}));
}

TEST(Onnx, RefusesScalesThatChangeFromTokenToToken) {
  QuantizedWeights q = random_layer("a", QuantSpec{}, 8, 64);
  q.input = int8_input(true);
  EXPECT_NE(refusal_of("onnx", {q}).find("QuantizeLinear has a fixed scale"), std::string::npos);
  q.input = int8_input(false);
  EXPECT_EQ(refusal_of("onnx", {q}), "");
}

TEST(Onnx, RefusesWhatAGraphHasNoOperatorFor) {
  const auto refusal = [](auto change) {
    QuantizedWeights q = random_layer("a", group_spec(4, 32), 8, 64);
    change(q);
    return refusal_of("onnx", {q});
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(refusal([](auto& q) { q.weight.grid = Grid::e4m3; }), "must be integers"));
  EXPECT_TRUE(has(refusal([](auto& q) {
                    q.weight.granularity = Granularity::block;
                    q.weight.block = {8, 8};
                  }),
                  "the weights have block"));
  EXPECT_TRUE(has(refusal([](auto& q) {
                    q.input = int8_input(false);
                    q.input->bits = 4;
                  }),
                  "must be int8"));
}

TEST(Onnx, AScaleForAllIsAScalar) {
  QuantSpec spec;
  spec.granularity = Granularity::tensor;
  spec.grid = Grid::asymmetric;
  const NamedTensors written = onnx_tensors(random_layer("a", spec, 8, 64));
  EXPECT_EQ(written.at("a.scale").dim(), 0);
  EXPECT_EQ(written.at("a.zero_point").dim(), 0);
}

}  // namespace
}  // namespace qat
