#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>
#include <torch/types.h>

#include <string>

namespace characters {

constexpr int64_t kVocabulary = 256;  // bytes
constexpr int64_t kContext = 96;
constexpr int64_t kHidden = 96;
constexpr int64_t kHeads = 4;
constexpr int64_t kBlocks = 3;

// A transformer over bytes, for whatever holds its linear layers: torch::nn::Linear to train,
// qat::PackedLinear to deploy.
template <typename Linear>
struct BlockImpl : torch::nn::Module {
  torch::nn::LayerNorm before_attention{register_module(
      "before_attention", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kHidden})))};
  Linear qkv{register_module("qkv", Linear(kHidden, 3 * kHidden))};
  Linear out{register_module("out", Linear(kHidden, kHidden))};
  torch::nn::LayerNorm before_mlp{
      register_module("before_mlp", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kHidden})))};
  Linear up{register_module("up", Linear(kHidden, 4 * kHidden))};
  Linear down{register_module("down", Linear(4 * kHidden, kHidden))};

  torch::Tensor attention(const torch::Tensor& x) {
    const auto heads = [&](const torch::Tensor& part) {
      return part.unflatten(2, {kHeads, kHidden / kHeads}).transpose(1, 2);
    };
    const auto parts = qkv->forward(x).chunk(3, 2);
    const torch::Tensor mixed = at::scaled_dot_product_attention(
        heads(parts[0]), heads(parts[1]), heads(parts[2]), {}, 0.0, /*is_causal=*/true);
    return out->forward(mixed.transpose(1, 2).flatten(2));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = x + attention(before_attention->forward(x));
    return x + down->forward(torch::gelu(up->forward(before_mlp->forward(x))));
  }
};

template <typename Linear>
struct Transformer : torch::nn::Module {
  torch::nn::Embedding bytes{register_module("bytes", torch::nn::Embedding(kVocabulary, kHidden))};
  torch::nn::Embedding places{register_module("places", torch::nn::Embedding(kContext, kHidden))};
  torch::nn::ModuleList blocks{register_module("blocks", torch::nn::ModuleList())};
  torch::nn::LayerNorm last_norm{
      register_module("last_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kHidden})))};
  Linear head{register_module("head", Linear(kHidden, kVocabulary))};

  Transformer() {
    for (int64_t i = 0; i < kBlocks; ++i) blocks->push_back(std::make_shared<BlockImpl<Linear>>());
  }
  // Bytes int64 [batch, length], at most kContext long, to logits [batch, length, 256].
  torch::Tensor forward(const torch::Tensor& text) {
    torch::Tensor x = bytes->forward(text) + places->forward(torch::arange(text.size(1)));
    for (const auto& block : *blocks) x = block->template as<BlockImpl<Linear>>()->forward(x);
    return head->forward(last_norm->forward(x));
  }
};

// Goes on from `start`, one byte after the other.
template <typename Linear>
std::string continued(Transformer<Linear>& model, const std::string& start, int64_t length) {
  const torch::NoGradGuard no_grad;
  std::string text = start;
  while (static_cast<int64_t>(text.size()) < length) {
    const std::string seen = text.substr(text.size() - std::min<size_t>(text.size(), kContext));
    torch::Tensor ids = torch::empty({1, static_cast<int64_t>(seen.size())}, torch::kLong);
    for (size_t i = 0; i < seen.size(); ++i)
      ids[0][static_cast<int64_t>(i)] = static_cast<uint8_t>(seen[i]);
    const torch::Tensor next = (model.forward(ids)[0][-1] / 0.7).softmax(0);
    text += static_cast<char>(torch::multinomial(next, 1).template item<int64_t>());
  }
  return text;
}

}  // namespace characters
