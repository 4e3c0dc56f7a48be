#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qat/ops/choose_qparams.h"
#include "qat/ops/encode.h"
#include "qat/ops/fake_quantize.h"
#include "qat/ops/kl_divergence.h"
#include "qat/ops/kv_cache.h"
#include "qat/ops/quant_linear.h"
#include "qat/ops/quantize.h"
#include "qat/ops/quantize_with_feedback.h"
#include "tests/ops/quantizer_text.h"

// On the meta device every operator gives what it gives on the CPU, but for the numbers: shapes,
// dtypes and which results there are. torch.compile and models without memory rest on it.
namespace qat {
namespace {

using Tensors = std::vector<at::Tensor>;

template <typename... T>
Tensors list_of(const std::tuple<T...>& tuple) {
  return std::apply([](const auto&... tensors) { return Tensors{tensors...}; }, tuple);
}

// Calls `run` with tensors on the CPU and with the same on the meta device.
template <typename Run>
void expect_alike(const Tensors& arguments, const Run& run) {
  Tensors meta;
  for (const at::Tensor& argument : arguments) meta.push_back(argument.to(at::kMeta));
  const Tensors expected = run(arguments), found = run(meta);
  ASSERT_EQ(expected.size(), found.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].defined(), found[i].defined()) << i;
    if (!expected[i].defined()) continue;
    EXPECT_EQ(expected[i].sizes(), found[i].sizes()) << i;
    EXPECT_EQ(expected[i].scalar_type(), found[i].scalar_type()) << i;
    EXPECT_TRUE(found[i].is_meta()) << i;
  }
}

class Meta : public testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor x = at::randn({4, 64}).to(GetParam());
  at::Tensor grad = at::randn({4, 64}).to(GetParam());
  at::Tensor scale = at::rand({4, 2}) + 0.1;
  at::Tensor zero = at::zeros({4, 2}, at::kChar);
};

TEST_P(Meta, Parameters) {
  expect_alike({x}, [](const Tensors& t) {
    return list_of(
        choose_qparams(t[0], text("minmax", 4, "asymmetric", {1, 32}, at::kHalf), "mse"));
  });
  expect_alike({scale}, [](const Tensors& t) {
    return list_of(round_qparams(t[0], text("learned", 4, "full", {1, 1}, at::kHalf)));
  });
}

TEST_P(Meta, FakeQuantization) {
  expect_alike({x, scale, zero}, [](const Tensors& t) {
    return Tensors{rounded(t[0], text("fixed", 4, "asymmetric", {1, 32}), t[1], t[2])};
  });
  expect_alike({grad, x, scale, zero}, [](const Tensors& t) {
    return Tensors{std::get<0>(fake_quantize_backward(
        t[0], t[1], text("fixed", 4, "asymmetric", {1, 32}), t[2], t[3], std::nullopt))};
  });
  expect_alike({grad, x, scale, zero}, [](const Tensors& t) {
    at::Tensor in_place = t[0].clone();
    fake_quantize_backward_inplace(in_place, t[1], text("fixed", 4, "asymmetric", {1, 32}), t[2],
                                   t[3], std::nullopt);
    return Tensors{in_place};
  });
  expect_alike({x}, [](const Tensors& t) {
    return list_of(fake_quantize(t[0], text("minmax", 4, "full", {1, 32}, at::kBFloat16)));
  });
}

TEST_P(Meta, LearnedFakeQuantization) {
  expect_alike({x, scale}, [](const Tensors& t) {
    return Tensors{rounded(t[0], text("learned", 4, "full", {1, 32}, at::kFloat, 0.5), t[1])};
  });
  for (const bool asymmetric : {false, true})
    expect_alike({grad, x, scale, zero.to(at::kFloat)}, [asymmetric](const Tensors& t) {
      const std::optional<at::Tensor> zero_point = asymmetric ? std::optional(t[3]) : std::nullopt;
      at::Tensor in_place = t[0].clone();
      Tensors all = list_of(fake_quantize_backward(
          t[0], t[1], text("learned", 4, "asymmetric", {1, 32}, at::kFloat, 0.5), t[2], zero_point,
          std::nullopt));
      for (const at::Tensor& more : list_of(fake_quantize_backward_inplace(
               in_place, t[1], text("learned", 4, "asymmetric", {1, 32}, at::kFloat, 0.5), t[2],
               zero_point, std::nullopt)))
        all.push_back(more);
      return all;
    });
}

TEST_P(Meta, Codes) {
  expect_alike({x, scale, zero}, [](const Tensors& t) {
    return Tensors{quantize(t[0], text("fixed", 4, "asymmetric", {1, 32}), t[1], t[2])};
  });
  const at::Tensor codes = quantize(x, text("fixed", 4, "asymmetric", {1, 32}), scale, zero);
  expect_alike({codes, scale, zero}, [](const Tensors& t) {
    return Tensors{dequantize(t[0], t[1], t[2], {1, 32}, GetParam())};
  });
  expect_alike({grad, codes, scale, zero}, [](const Tensors& t) {
    return Tensors{dequantize_backward(t[0], t[1], t[2], t[3], {1, 32})};
  });
}

TEST_P(Meta, CodesThatLayersKeep) {
  for (const int64_t bits : {4, 8}) {
    expect_alike({x, scale, zero}, [bits](const Tensors& t) {
      return list_of(
          encode(t[0], text("fixed", bits, "full", {1, 32}, at::kFloat), t[1], t[2], std::nullopt));
    });
    expect_alike({x}, [bits](const Tensors& t) {
      return list_of(encode(t[0], text("minmax", bits, "full", {1, 32}, at::kFloat), std::nullopt,
                            std::nullopt, std::nullopt));
    });
    const auto [codes, found, point] = encode(x, text("minmax", bits, "full", {1, 32}, at::kFloat),
                                              std::nullopt, std::nullopt, std::nullopt);
    expect_alike({codes, found, point}, [bits](const Tensors& t) {
      return Tensors{
          decode(t[0], text("fixed", bits, "full", {1, 32}), t[1], t[2], 64, GetParam())};
    });
  }
}

TEST_P(Meta, CachesOfKeysAndValues) {
  const at::Tensor keys = at::randn({2, 2, 8, 16}).to(GetParam());
  for (const auto* granularity : {"token", "group", "channel"})
    expect_alike({keys}, [granularity](const Tensors& t) {
      return Tensors{fake_quantize_cache(t[0], std::nullopt, granularity, 4, 4, "asymmetric", 0)};
    });
}

TEST_P(Meta, LinearLayers) {
  const at::Tensor weight = at::randn({8, 64}).to(GetParam());
  const auto* quantizer = "minmax int4 narrow 1x32 bfloat16";
  expect_alike({x, weight}, [quantizer](const Tensors& t) {
    return Tensors{quant_linear(t[0], t[1], std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                                std::nullopt, {}, quantizer, "")};
  });
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Meta, testing::Values(at::kFloat, at::kBFloat16, at::kHalf));

TEST(MetaKlDivergence, ValueAndGradient) {
  const at::Tensor student = at::randn({2, 3, 50}).to(at::kBFloat16),
                   teacher = at::randn({2, 3, 50});
  const at::Tensor counted = at::ones({2, 3}, at::kBool);
  expect_alike({student, teacher, counted, at::ones({})}, [](const Tensors& t) {
    Tensors found = list_of(kl_divergence(t[0], t[1], 2.0, t[2], t[3]));
    found.push_back(std::get<1>(kl_divergence(t[0], t[1])));
    found.push_back(forward_kl(t[0], t[1], 1.0, t[2]));
    return found;
  });
}

TEST(MetaFeedback, GptqColumns) {
  const at::Tensor weight = at::randn({4, 8}), offset = at::zeros({4, 8});
  const at::Tensor transfer = at::eye(8), scale = at::ones({4, 8}),
                   zero = at::zeros({4, 8}, at::kChar);
  expect_alike({weight, offset, transfer, scale, zero}, [](const Tensors& t) {
    return list_of(
        quantize_with_feedback(t[0], "fixed int4 full 1x-1 float32", t[1], t[2], t[3], t[4]));
  });
}

}  // namespace
}  // namespace qat
