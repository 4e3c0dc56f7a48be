#pragma once

#include <torch/nn/module.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qat/artifact.h"
#include "qat/nn/input_quantizer.h"
#include "qat/nn/master_watch.h"
#include "qat/nn/module_layers.h"
#include "qat/nn/weight_quantizer.h"
#include "qat/ops/api.h"

namespace qat {

class SharedOuterScale;

// Under which name it is a child of its layer.
constexpr const char* kQuantizerName = "quantizer";

// The fake quantization of one layer, which prepare() puts into it as a child.
//
// Modules of LibTorch are held by their members, and their forwards are not virtual, so a layer
// cannot be exchanged from outside. What it multiplies by, however, is its member `weight`: in a
// prepared layer that is a leaf of its own with the rounded weight, while the master stays the
// registered parameter, which parameters(), optimizers, torch::save and torch::load see. When a
// backward has brought the leaf its gradient, the master receives it, straight through the rounding
// (numerics.md 4 to 6), and so do learned scales.
//
// The leaf is rounded anew by Schedule::step(), train(), eval() and torch::load, and in the forward
// of the drop-ins of layers.h where its master changed. A backward through a weight that was
// rounded before the last change of its master throws std::logic_error: the gradient would be that
// of other numbers. A master that is frozen or unfrozen is seen then, too: its leaf wants a
// gradient where the master does, or a learned scale.
//
// Scales are registered in the layer, as weight_scale and so on, parameters where they are learned:
// named_parameters() and torch::save have them.
class QAT_API LayerQuantizer : public torch::nn::Module {
 public:
  // Throws std::invalid_argument for a weight that is not finite, for an embedding that
  // renormalises its weight in the forward, and for an input of a layer that is no drop-in.
  LayerQuantizer(const ModuleLayer& layer, const LayerPlan& plan, ScaleSearch search,
                 bool keeps_scales);
  LayerQuantizer(const LayerQuantizer&) = delete;
  LayerQuantizer& operator=(const LayerQuantizer&) = delete;

  // Sets the widths, kFloat switching off. Returns the scales and zero points, of weight and input,
  // that are others than before.
  std::vector<at::Tensor> set_bits(int weight_bits, int input_bits, ScaleSearch search,
                                   bool derive = true);
  // Takes the outer scale of its weight from what it shares with others, and derives its scales
  // under it. To be refreshed when all of them have.
  void share(std::shared_ptr<const SharedOuterScale> outer, ScaleSearch search);
  // Moves whenever that is written which the outer scale of the weight follows.
  int64_t version() const;
  // The input as the layer multiplies it; for drop-ins.
  at::Tensor input(const at::Tensor& x);
  // Rounds the weight anew.
  void refresh();
  // Whether master, scale or width have changed since (master_watch.h).
  bool stale() const;

  // Scales and zero points that were chosen together with the weight, for the width in force; the
  // weight moves to `master` [rows, cols], whose codes they have. For searched and learned scales.
  void set_rounded(const at::Tensor& master, const at::Tensor& scale, const at::Tensor& zero_point);
  // The outer scales of what is chosen together with codes: by the ranges of the weight, and of all
  // that share one, as they were before the first of them was rounded since unsettle_outer_scales().
  OuterParameters settle_outer_scales();
  void unsettle_outer_scales();
  // What it has its outer scale from, with others; none where that is its own, or there is none.
  const SharedOuterScale* shared_outer_scale() const { return shared_.get(); }
  // Searched or learned scales, chosen for the master as it is; `importance` as of choose_qparams.
  void choose_scale(ScaleSearch search, const std::optional<at::Tensor>& importance);
  // Multiplies the columns of the master by `scale` [cols].
  void scale_columns(const at::Tensor& scale);
  // The weight before and after it is rounded, [rows, cols], without gradient.
  at::Tensor master() const;
  at::Tensor rounded() const;
  // Throws std::invalid_argument, naming the layer, unless its schedule has ended.
  QuantizedWeights convert(const std::string& name, std::optional<at::ScalarType> dtype) const;

  const std::optional<WeightQuantizer>& weight() const { return weight_; }
  std::optional<InputQuantizer>& input_quantizer() { return input_; }
  const std::optional<InputQuantizer>& input_quantizer() const { return input_; }

  // Of torch::nn::Module, called with those of the layer.
  void train(bool on = true) override;
  void load(torch::serialize::InputArchive& archive) override;
  void pretty_print(std::ostream& stream) const override;

  // Called by prepare() once the layer holds this as a child: registers scales, rounds the weight.
  void attach(torch::nn::Module& layer);

 private:
  struct HandOn;
  MasterWatch::Stamp stamp() const;
  bool wants_gradient() const;
  void follow_freezing();
  void hand_on(at::Tensor gradient);
  void register_state(torch::nn::Module& layer);
  void refresh_all();

  std::string name_;
  at::Tensor* member_;  // the layer's `weight`
  at::Tensor master_;   // the parameter
  at::Tensor leaf_;     // undefined without a weight to quantize
  std::optional<WeightQuantizer> weight_;
  std::optional<InputQuantizer> input_;
  std::shared_ptr<const SharedOuterScale> shared_;
  Quantizer::Result found_;  // scale and zero point of the leaf, where they are found from it
  MasterWatch watch_;
  at::Tensor bits_;  // int64 [2], the widths in force: what torch::save keeps of them
  std::array<int, 2> written_{kFloat, kFloat};  // the same, on the host
};

// The quantizer that prepare() put into a layer, or none.
QAT_API std::shared_ptr<LayerQuantizer> quantizer_of(const torch::nn::Module& layer);

}  // namespace qat
