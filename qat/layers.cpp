#include "qat/layers.h"

namespace qat {

at::Tensor DropIn::passed(const torch::nn::Module& layer, LayerQuantizer*& quantizer,
                          const at::Tensor& x) {
  if (!quantizer) {
    const auto children = layer.named_children();
    if (children.contains(kQuantizerName))
      quantizer = dynamic_cast<LayerQuantizer*>(children[kQuantizerName].get());
  }
  return quantizer ? quantizer->input(x) : x;
}

}  // namespace qat
