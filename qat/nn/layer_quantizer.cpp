#include "qat/nn/layer_quantizer.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/serialize/archive.h>

#include "qat/error.h"
#include "qat/nn/layers.h"
#include "qat/nn/shared_outer_scale.h"
#include "qat/recipe/width_name.h"

namespace qat {
namespace {

at::Tensor as_matrix(const at::Tensor& weight) {
  return weight.dim() == 2 ? weight : weight.reshape({weight.size(0), -1});
}

void add_gradient(at::Tensor to, const at::Tensor& gradient) {
  if (!to.requires_grad() || !gradient.defined()) return;
  // Not a view: optimizers detach gradients in place.
  const at::Tensor shaped =
      gradient.layout() == at::kStrided ? at::_unsafe_view(gradient, to.sizes()) : gradient;
  to.mutable_grad() = to.grad().defined() ? to.grad() + shaped : shaped;
}

void check(const ModuleLayer& layer, const LayerPlan& plan) {
  if (!at::isfinite(*layer.weight).all().item<bool>())
    throw InvalidArgument("The weight of " + layer.name +
                          " must be finite, but has elements that are NaN or infinite.");
  if (plan.input && !dynamic_cast<DropIn*>(layer.module.get()))
    throw InvalidArgument(layer.name + " must be a qat::Quant" + layer.type +
                          " for its input to be quantized, but is a torch::nn::" + layer.type +
                          ", whose forward cannot be reached.");
  const auto* embedding = dynamic_cast<torch::nn::EmbeddingImpl*>(layer.module.get());
  if (embedding && embedding->options.max_norm())
    throw InvalidArgument("The embedding " + layer.name +
                          " must not renormalise its weight (max_norm) to be quantized.");
}

}  // namespace

// Runs when a backward has added to the gradient of a leaf.
struct LayerQuantizer::HandOn : torch::autograd::PostAccumulateGradHook {
  explicit HandOn(std::weak_ptr<torch::nn::Module> to) : quantizer(std::move(to)) {}
  void operator()(const at::Tensor& leaf) override {
    at::Tensor gradient = leaf.grad();
    leaf.mutable_grad().reset();
    const auto held = quantizer.lock();
    if (held) static_cast<LayerQuantizer&>(*held).hand_on(std::move(gradient));
  }
  std::weak_ptr<torch::nn::Module> quantizer;  // a graph may hold the leaf for longer
};

LayerQuantizer::LayerQuantizer(const ModuleLayer& layer, const LayerPlan& plan, ScaleSearch search,
                               bool keeps_scales)
    : torch::nn::Module("LayerQuantizer"),
      name_(layer.name),
      member_(layer.weight),
      master_(*layer.weight) {
  check(layer, plan);
  if (plan.weight) weight_.emplace(*plan.weight, master(), keeps_scales);
  if (plan.input) input_.emplace(*plan.input, master().size(1), master_.device());
  bits_ = register_buffer("bits", at::tensor({kFloat, kFloat}, at::kLong));
  set_bits(plan.weight ? plan.weight->bits : kFloat, plan.input ? plan.input->bits : kFloat,
           search);
}

void LayerQuantizer::register_state(torch::nn::Module& layer) {
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.requires_grad())
      layer.register_parameter(name, tensor);
    else
      layer.register_buffer(name, tensor);
  };
  if (weight_) {
    add("weight_scale", weight_->scale());
    if (!weight_->learned() || !weight_->spec().symmetric())
      add("weight_zero_point", weight_->zero_point());
    add("weight_outer_scale", weight_->outer_scale());
    add("weight_outer_offset", weight_->outer_offset());
    add("lattice_scale", weight_->lattice_scale());
    add("lattice_zero_point", weight_->lattice_zero_point());
    add("lattice_outer_scale", weight_->lattice_outer_scale());
    add("lattice_outer_offset", weight_->lattice_outer_offset());
  }
  if (input_) {
    add("input_low", input_->low());
    add("input_high", input_->high());
    add("input_scale", input_->scale());
    if (!input_->learned() || !input_->spec().symmetric())
      add("input_zero_point", input_->zero_point());
  }
}

void LayerQuantizer::attach(torch::nn::Module& layer) {
  register_state(layer);
  if (!weight_) return;
  leaf_ = at::empty_like(master_.detach());
  torch::autograd::impl::set_post_acc_grad_hooks(leaf_,
                                                 std::make_unique<HandOn>(shared_from_this()));
  refresh();
}

std::vector<at::Tensor> LayerQuantizer::set_bits(int weight_bits, int input_bits,
                                                 ScaleSearch search, bool derive) {
  std::vector<at::Tensor> changed;
  if (shared_ && derive && weight_bits != kFloat && weight_bits != weight_->bits())
    weight_->set_shared_outer_scale(shared_->needed(weight_bits));
  if (weight_ && weight_->set_bits(weight_bits, master(), search, derive))
    changed.insert(changed.end(), {weight_->scale(), weight_->zero_point()});
  if (input_ && input_->set_bits(input_bits, derive))
    changed.insert(changed.end(), {input_->scale(), input_->zero_point()});
  const std::array<int, 2> widths{weight_bits, input_bits};
  if (widths != written_) {
    const at::NoGradGuard no_grad;
    bits_.copy_(at::tensor({weight_bits, input_bits}, at::kLong));
    written_ = widths;
  }
  return changed;
}

void LayerQuantizer::share(std::shared_ptr<const SharedOuterScale> outer, ScaleSearch search) {
  shared_ = std::move(outer);
  weight_->set_shared_outer_scale(shared_->needed(weight_->bits()));
  if (weight_->scale().defined()) weight_->derive(master(), search);
}

bool LayerQuantizer::wants_gradient() const {
  return master_.requires_grad() || (weight_->learned() && weight_->scale().requires_grad());
}

void LayerQuantizer::follow_freezing() {
  if (leaf_.requires_grad() != wants_gradient()) leaf_.requires_grad_(wants_gradient());
}

MasterWatch::Stamp LayerQuantizer::stamp() const {
  if (!weight_) return {};
  return {master_.const_data_ptr(),         version_of(master_),
          version_of(weight_->scale()),     version_of(weight_->zero_point()),
          shared_ ? shared_->version() : 0, weight_->bits()};
}

int64_t LayerQuantizer::version() const {
  if (weight_->spec().range == Range::fixed) return 0;
  return version_of(weight_->learned() ? weight_->scale() : master_);
}

bool LayerQuantizer::stale() const {
  return weight_ && leaf_.defined() && watch_.changed(stamp(), master_, is_training());
}

void LayerQuantizer::refresh() {
  if (!weight_ || !leaf_.defined()) return;
  const at::NoGradGuard no_grad;
  follow_freezing();
  if (weight_->bits() == kFloat) {
    *member_ = master_;
  } else {
    if (leaf_.device() != master_.device() || leaf_.scalar_type() != master_.scalar_type())
      leaf_.set_data(at::empty_like(master_.detach()));
    if (shared_) weight_->set_shared_outer_scale(shared_->in_force());
    found_ = weight_->quantizer()(master(), weight_->parameters(), master_.scalar_type());
    leaf_.copy_(found_.values.view_as(leaf_));
    found_.values.reset();
    *member_ = leaf_;
  }
  watch_.rounded(stamp(), master_);
}

void LayerQuantizer::hand_on(at::Tensor gradient) {
  if (stale())
    throw LogicError("The weight of " + name_ +
                     " changed after it was rounded; call schedule.step() after "
                     "optimizer.step(), before the next forward.");
  watch_.gradient_came();
  const at::NoGradGuard no_grad;
  const Quantizer quantizer = weight_->quantizer();
  if (quantizer.never_clips()) return add_gradient(master_, gradient);
  if (gradient.layout() != at::kStrided) gradient = gradient.to_dense();
  at::Tensor matrix = as_matrix(gradient).contiguous();
  const auto [scale, zero_point] =
      quantizer.backward_inplace(matrix, master(), weight_->parameters(), found_);
  add_gradient(master_, matrix);
  if (!weight_->learned()) return;
  add_gradient(weight_->scale(), scale);
  if (!weight_->spec().symmetric()) add_gradient(weight_->zero_point(), zero_point);
}

at::Tensor LayerQuantizer::input(const at::Tensor& x) {
  if (stale()) refresh();
  if (weight_) follow_freezing();
  return input_ ? (*input_)(x, is_training()) : x;
}

at::Tensor LayerQuantizer::master() const { return as_matrix(master_.detach()); }

at::Tensor LayerQuantizer::rounded() const {
  return weight_ ? weight_->rounded(master()) : master().to(at::kFloat);
}

void LayerQuantizer::set_rounded(const at::Tensor& master, const at::Tensor& scale,
                                 const at::Tensor& zero_point) {
  const at::NoGradGuard no_grad;
  watch_.forget_gradient();
  master_.copy_(master.view_as(master_));
  weight_->set_qparams(scale, zero_point);
  refresh_all();
}

void LayerQuantizer::choose_scale(ScaleSearch search, const std::optional<at::Tensor>& importance) {
  weight_->choose(master(), search, importance, settle_outer_scales());
  refresh_all();
}

OuterParameters LayerQuantizer::settle_outer_scales() {
  const at::NoGradGuard no_grad;
  OuterParameters outer;
  if (shared_) outer.scale = shared_->settled(weight_->bits());
  outer = outer_parameters(master(), weight_->spec(), weight_->bits(), outer);
  weight_->set_outer_scales(outer);
  if (shared_) weight_->set_shared_outer_scale(*outer.scale);
  return outer;
}

void LayerQuantizer::unsettle_outer_scales() {
  if (shared_) shared_->unsettle();
}

void LayerQuantizer::refresh_all() {
  if (shared_)
    shared_->refresh();
  else
    refresh();
}

void LayerQuantizer::scale_columns(const at::Tensor& scale) {
  const at::NoGradGuard no_grad;
  watch_.forget_gradient();
  master_.copy_((master() * scale.to(master_.scalar_type())).view_as(master_));
  refresh_all();
}

QuantizedWeights LayerQuantizer::convert(const std::string& name,
                                         std::optional<at::ScalarType> dtype) const {
  const QuantSpec& spec = weight_->spec();
  if (weight_->bits() != spec.bits)
    throw InvalidArgument(name + " must be at its exported width, " + dtype_name(spec) +
                          ", but its schedule has it at " + width_name(weight_->bits()) +
                          "; finish the schedule first.");
  const auto [scale, zero_point] = weight_->qparams(master());
  QuantizedWeights converted =
      quantize_weights(name, spec, master(), scale, zero_point,
                       dtype.value_or(master_.scalar_type()), weight_->outer_scales(master()));
  if (!input_) return converted;
  converted.input = input_->spec();
  if (!input_->calibrated()) return converted;
  if (!input_->has_range())
    throw InvalidArgument("The input of " + name +
                          " must have a range to be exported, but no batch was calibrated that "
                          "reached it with anything but zeros; calibrate such batches, or leave it "
                          "by a rule with input: float.");
  const auto [input_scale, input_zero_point] = input_->qparams();
  converted.input_scale = input_scale.reshape({1});
  if (!input_->spec().symmetric()) converted.input_zero_point = input_zero_point.reshape({1});
  return converted;
}

void LayerQuantizer::train(bool on) {
  torch::nn::Module::train(on);
  refresh();
}

void LayerQuantizer::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);  // after the tensors of the layer, whose child this is
  watch_.forget_gradient();
  set_bits(bits_[0].item<int>(), bits_[1].item<int>(), ScaleSearch::mse, /*derive=*/false);
  if (input_) input_->restore();
  refresh();
}

void LayerQuantizer::pretty_print(std::ostream& stream) const {
  stream << "qat::LayerQuantizer(weight=" << (weight_ ? describe(weight_->spec()) : "float")
         << ", input=" << (input_ ? describe(input_->spec()) : "float") << ")";
}

std::shared_ptr<LayerQuantizer> quantizer_of(const torch::nn::Module& layer) {
  const auto children = layer.named_children();
  return children.contains(kQuantizerName)
             ? std::dynamic_pointer_cast<LayerQuantizer>(children[kQuantizerName])
             : nullptr;
}

}  // namespace qat
