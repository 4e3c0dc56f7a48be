#include <gtest/gtest.h>

#include "qat/formats/onnx.h"
#include "tests/qat/formats/layers.h"

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

}  // namespace
}  // namespace qat
