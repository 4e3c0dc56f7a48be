#include "qat/nn/input_tap.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/im2col.h>
#include <torch/nn/modules/conv.h>

#include <string_view>
#include <vector>

namespace qat {
namespace {

// The taps of this thread, which share one callback.
thread_local std::vector<InputTap*> active;
thread_local at::CallbackHandle shared_handle = at::INVALID_CALLBACK_HANDLE;

// The patches that a convolution multiplies, [batch, positions, in * height * width]; its arguments
// are those of aten::conv2d or, where padding is a word, of aten::conv2d.padding.
at::Tensor patches(const at::Tensor& x, const at::Tensor& weight,
                   c10::ArrayRef<const c10::IValue> arguments) {
  const auto kernel = weight.sizes().slice(2);
  const auto stride = arguments[3].toIntVector(), dilation = arguments[5].toIntVector();
  at::Tensor batch = x.dim() == 4 ? x : x.unsqueeze(0);
  std::vector<int64_t> padding{0, 0};
  if (!arguments[4].isString()) {
    padding = arguments[4].toIntVector();
  } else if (arguments[4].toStringRef() == "same") {
    const int64_t high = dilation[0] * (kernel[0] - 1), wide = dilation[1] * (kernel[1] - 1);
    batch = at::constant_pad_nd(batch, {wide / 2, wide - wide / 2, high / 2, high - high / 2});
  }
  return at::im2col(batch, kernel, dilation, padding, stride).transpose(1, 2);
}

}  // namespace

bool InputTap::reaches(const ModuleLayer& layer) {
  if (layer.type == "Linear") return true;
  const auto* conv = dynamic_cast<torch::nn::Conv2dImpl*>(layer.module.get());
  return conv && conv->options.groups() == 1;
}

InputTap::InputTap(std::vector<ModuleLayer> layers, Callback callback)
    : layers_(std::move(layers)), callback_(std::move(callback)) {
  if (active.empty())
    shared_handle = at::addThreadLocalCallback(at::RecordFunctionCallback(&InputTap::listen)
                                                   .needsInputs(true)
                                                   .scopes({at::RecordScope::FUNCTION}));
  active.push_back(this);
}

InputTap::~InputTap() {
  std::erase(active, this);
  if (active.empty()) at::removeCallback(shared_handle);
}

std::unique_ptr<at::ObserverContext> InputTap::listen(const at::RecordFunction& call) {
  const at::DisableRecordFunctionGuard deaf;  // to what the callbacks themselves compute
  for (InputTap* tap : active) tap->hear(call);
  return nullptr;
}

void InputTap::hear(const at::RecordFunction& call) {
  const std::string_view name = call.name();
  const auto arguments = call.inputs();
  const auto tensor = [&](size_t index) { return arguments[index].toTensor(); };
  // torch::nn::Linear multiplies with the transpose of its weight.
  if (name == "aten::addmm" || name == "aten::matmul") {
    const size_t first = name == "aten::addmm" ? 1 : 0;
    const at::Tensor x = tensor(first);
    tell(tensor(first + 1), /*transposed=*/true, x, [&] { return x; });
  } else if (name == "aten::conv2d") {
    const at::Tensor x = tensor(0), weight = tensor(1);
    tell(weight, /*transposed=*/false, x, [&] { return patches(x, weight, arguments); });
  }
}

void InputTap::tell(const at::Tensor& weight, bool transposed, const at::Tensor& x,
                    const Rows& rows) {
  if (!weight.defined() || weight.dim() < 2) return;
  for (size_t index = 0; index < layers_.size(); ++index) {
    const at::Tensor& own = *layers_[index].weight;
    const bool shaped = transposed
                            ? own.dim() == 2 && weight.dim() == 2 &&
                                  weight.size(0) == own.size(1) && weight.size(1) == own.size(0)
                            : weight.sizes() == own.sizes();
    if (shaped && reaches(layers_[index]) && weight.const_data_ptr() == own.const_data_ptr())
      callback_(index, x, rows);
  }
}

}  // namespace qat
