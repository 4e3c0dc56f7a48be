#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <memory>
#include <optional>

#include "qat/nn/layer_quantizer.h"
#include "qat/ops/api.h"

namespace qat {

// What drop-ins have in common: a forward that passes its input by the quantizer of the layer.
class QAT_API DropIn {
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
// clone() gives a drop-in, and throws std::logic_error once the layer is prepared.
class QAT_API QuantLinearImpl : public torch::nn::LinearImpl, public DropIn {
 public:
  using torch::nn::LinearImpl::LinearImpl;
  at::Tensor forward(const at::Tensor& x) {
    return torch::nn::LinearImpl::forward(passed(*this, x));
  }
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  explicit QuantLinearImpl(const torch::nn::LinearImpl& layer) : torch::nn::LinearImpl(layer) {}
};
TORCH_MODULE(QuantLinear);

class QAT_API QuantConv2dImpl : public torch::nn::Conv2dImpl, public DropIn {
 public:
  using torch::nn::Conv2dImpl::Conv2dImpl;
  at::Tensor forward(const at::Tensor& x) {
    return torch::nn::Conv2dImpl::forward(passed(*this, x));
  }
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  explicit QuantConv2dImpl(const torch::nn::Conv2dImpl& layer) : torch::nn::Conv2dImpl(layer) {}
};
TORCH_MODULE(QuantConv2d);

}  // namespace qat
