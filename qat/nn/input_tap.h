#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include <functional>
#include <vector>

#include "qat/nn/module_layers.h"

namespace qat {

// While it lives, says on this thread what the weights of layers are multiplied with, by listening
// to the operators that LibTorch's layers call: nothing of the module is changed for that. Weights
// of embeddings and of grouped convolutions are not multiplied with the same vectors row by row, so
// they are never called for. Of several that live, each says so once.
class InputTap {
 public:
  // `layer` counts in `layers`; `x` is the operator's argument, the same tensor for layers that are
  // given the same one; `rows` [..., cols] is what the rows of the weight are multiplied with, made
  // when it is asked for: x itself, or the patches of a convolution.
  using Rows = std::function<at::Tensor()>;
  using Callback = std::function<void(size_t layer, const at::Tensor& x, const Rows& rows)>;

  InputTap(std::vector<ModuleLayer> layers, Callback callback);
  ~InputTap();
  InputTap(const InputTap&) = delete;
  InputTap& operator=(const InputTap&) = delete;

  // Whether the layer is one that is called for.
  static bool reaches(const ModuleLayer& layer);

 private:
  static std::unique_ptr<at::ObserverContext> listen(const at::RecordFunction& call);
  void hear(const at::RecordFunction& call);
  void tell(const at::Tensor& weight, bool transposed, const at::Tensor& x, const Rows& rows);

  std::vector<ModuleLayer> layers_;
  Callback callback_;
};

}  // namespace qat
