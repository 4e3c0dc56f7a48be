#include <gtest/gtest.h>

#include "qat/checkpoint/formats/awq.h"
#include "tests/qat/checkpoint/formats/layers.h"

namespace qat {
namespace {

TEST(Awq, ColumnsOfAWordAreInterleaved) {
  QuantizedWeights q = random_layer("a", group_spec(4, 8), 8, 8);
  // Output j has the unsigned code j in every column.
  q.codes = at::arange(8).sub(8).to(at::kChar).unsqueeze(1).expand({8, 8}).contiguous();
  const at::Tensor words = awq_tensors(q).at("a.qweight");
  EXPECT_EQ(words.sizes(), (at::IntArrayRef{8, 1}));
  EXPECT_TRUE(words.eq(0x75316420).all().item<bool>());
}

TEST(Awq, SymmetricWeightsHaveTheZeroPointEight) {
  const NamedTensors written = awq_tensors(random_layer("a", group_spec(4, 32), 16, 64));
  EXPECT_TRUE(written.at("a.qzeros").eq(static_cast<int32_t>(0x88888888)).all().item<bool>());
  EXPECT_EQ(written.at("a.scales").sizes(), (at::IntArrayRef{2, 16}));
}

TEST(Awq, ItsConfigurationAlwaysHasZeroPoints) {
  const auto config = config_of("awq", {random_layer("a", group_spec(4, 32), 16, 64)}, {"lm_head"});
  EXPECT_EQ(config["zero_point"], true);
  EXPECT_EQ(config["version"], "gemm");
  EXPECT_EQ(config["modules_to_not_convert"][0], "lm_head");
}

TEST(Awq, RefusesTwoGroupSizes) {
  EXPECT_NE(refusal_of("awq", {random_layer("a", group_spec(4, 32), 16, 64),
                               random_layer("b", group_spec(4, 64), 16, 64)})
                .find("must have one group size for the whole model, but a has int4 group 32"),
            std::string::npos);
}

}  // namespace
}  // namespace qat
