#pragma once

#include <qat/nn/layers.h>
#include <torch/nn/module.h>

#include "data.h"

namespace digits {

// The network, for whatever holds its linear layers: qat::QuantLinear to train, qat::PackedLinear
// to deploy. Both are what a torch::nn::Linear is until they are quantized; qat::QuantConv2d, a
// torch::nn::Conv2d.
template <typename Linear>
struct Classifier : torch::nn::Module {
  using Conv2dOptions = torch::nn::Conv2dOptions;
  qat::QuantConv2d first{
      register_module("first", qat::QuantConv2d(Conv2dOptions(1, 8, 3).padding(1)))};
  qat::QuantConv2d second{
      register_module("second", qat::QuantConv2d(Conv2dOptions(8, 16, 3).stride(2).padding(1)))};
  Linear third{register_module("third", Linear(16 * 4 * 4, 32))};
  Linear last{register_module("last", Linear(32, 10))};

  torch::Tensor forward(const torch::Tensor& images) {
    torch::Tensor x = torch::relu(first->forward(images.view({-1, 1, 8, 8})));
    x = torch::relu(second->forward(x)).flatten(1);
    return last->forward(torch::relu(third->forward(x)));
  }
};

// Percent of the images that are recognised.
template <typename Linear>
double accuracy(Classifier<Linear>& classifier, const Data& data) {
  const torch::NoGradGuard no_grad;
  return classifier.forward(data.images)
             .argmax(1)
             .eq(data.labels)
             .to(torch::kFloat)
             .mean()
             .template item<double>() *
         100.0;
}

}  // namespace digits
