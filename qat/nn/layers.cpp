#include "qat/nn/layers.h"

#include <stdexcept>

#include "qat/error.h"

namespace qat {
namespace {

void check_plain(const torch::nn::Module& layer) {
  if (quantizer_of(layer))
    throw LogicError(layer.name() +
                     " must not be cloned once it is prepared: clone the module before "
                     "qat::prepare(), and prepare both.");
}

}  // namespace

at::Tensor DropIn::passed(const torch::nn::Module& layer, const at::Tensor& x) {
  if (!quantizer_) quantizer_ = quantizer_of(layer).get();
  return quantizer_ ? quantizer_->input(x) : x;
}

// LibTorch's clone makes a layer of torch::nn, which then is the base of a drop-in.
std::shared_ptr<torch::nn::Module> QuantLinearImpl::clone(
    const std::optional<torch::Device>& device) const {
  check_plain(*this);
  const auto layer = torch::nn::LinearImpl::clone(device);
  return std::shared_ptr<QuantLinearImpl>(
      new QuantLinearImpl(static_cast<const torch::nn::LinearImpl&>(*layer)));
}

std::shared_ptr<torch::nn::Module> QuantConv2dImpl::clone(
    const std::optional<torch::Device>& device) const {
  check_plain(*this);
  const auto layer = torch::nn::Conv2dImpl::clone(device);
  return std::shared_ptr<QuantConv2dImpl>(
      new QuantConv2dImpl(static_cast<const torch::nn::Conv2dImpl&>(*layer)));
}

}  // namespace qat
