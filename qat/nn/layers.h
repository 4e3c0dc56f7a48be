#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include "qat/nn/layer_quantizer.h"

namespace qat {

// What drop-ins have in common: a forward that passes its input by the quantizer of the layer.
class DropIn {
 public:
  virtual ~DropIn() = default;

 protected:
  at::Tensor passed(const torch::nn::Module& layer, const at::Tensor& x);

 private:
  LayerQuantizer* quantizer_ = nullptr;  // the child that prepare() added, once it was found
};

// Drop-ins for the layers of torch::nn, equal to them until prepare(), for recipes that quantize
// inputs: a layer of torch::nn lets its weight be quantized alone (layer_quantizer.h). They also
// round their weight anew in every forward after it changed, whether a schedule says so or not.
class QuantLinearImpl : public torch::nn::LinearImpl, public DropIn {
 public:
  using torch::nn::LinearImpl::LinearImpl;
  at::Tensor forward(const at::Tensor& x) {
    return torch::nn::LinearImpl::forward(passed(*this, x));
  }
};
TORCH_MODULE(QuantLinear);

class QuantConv2dImpl : public torch::nn::Conv2dImpl, public DropIn {
 public:
  using torch::nn::Conv2dImpl::Conv2dImpl;
  at::Tensor forward(const at::Tensor& x) {
    return torch::nn::Conv2dImpl::forward(passed(*this, x));
  }
};
TORCH_MODULE(QuantConv2d);

}  // namespace qat
