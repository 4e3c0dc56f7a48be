#pragma once

#include <torch/nn.h>

namespace qat {

// Layers in every way that LibTorch holds them.
struct Net : torch::nn::Module {
  torch::nn::Embedding words{register_module("words", torch::nn::Embedding(32, 16))};
  torch::nn::Sequential body{
      register_module("body", torch::nn::Sequential(torch::nn::Linear(16, 32), torch::nn::ReLU(),
                                                    torch::nn::Linear(32, 16)))};
  torch::nn::ModuleList list{
      register_module("list", torch::nn::ModuleList(torch::nn::Linear(16, 16)))};
  torch::nn::Linear shared{register_module("shared", torch::nn::Linear(16, 16))};
  torch::nn::Linear again{register_module("again", shared)};
  at::Tensor forward(const at::Tensor& ids) {
    at::Tensor x = body->forward(words->forward(ids));
    x = list->ptr<torch::nn::LinearImpl>(0)->forward(x);
    return again->forward(at::tanh(shared->forward(x)));
  }
};

struct Image : torch::nn::Module {
  torch::nn::Conv2d conv{
      register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)))};
  torch::nn::Linear head{register_module("head", torch::nn::Linear(8 * 16, 4))};
  at::Tensor forward(const at::Tensor& x) { return head->forward(conv->forward(x).flatten(1)); }
};

}  // namespace qat
