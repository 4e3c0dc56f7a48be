#include "qat/nn/deploy.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>

#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>

#include "qat/checkpoint/checkpoint.h"
#include "qat/error.h"
#include "qat/nn/layers.h"
#include "qat/nn/packed_linear.h"
#include "qat/nn/prepare.h"

namespace qat {
namespace {

std::string joined(const std::string& prefix, const std::string& leaf) {
  return prefix.empty() ? leaf : prefix + "." + leaf;
}

// Lets a drop-in round its input as a checkpoint says; its weight is used as it is.
void attach_input(const ModuleLayer& layer, const QuantizedWeights& weights) {
  LayerPlan plan;
  plan.name = layer.name;
  plan.input = weights.input;
  const auto quantizer = std::make_shared<LayerQuantizer>(layer, plan, ScaleSearch::mse, false);
  layer.module->register_module(kQuantizerName, quantizer);
  quantizer->attach(*layer.module);
  if (!weights.input->dynamic)
    quantizer->input_quantizer()->set_qparams(*weights.input_scale, weights.input_zero_point);
}

// Everything in a module that a checkpoint can hold, by the names of the model.
struct Contents {
  std::map<std::string, ModuleLayer> layers;  // of torch::nn and drop-ins
  std::map<std::string, PackedLinearImpl*> packed;
  NamedTensors tensors;  // parameters and buffers that the model itself has
};

Contents contents_of(const torch::nn::Module& module) {
  Contents found;
  for (const ModuleLayer& layer : module_layers(module)) found.layers.emplace(layer.name, layer);
  for (const auto& item : module.named_modules("", /*include_self=*/false))
    if (auto* packed = dynamic_cast<PackedLinearImpl*>(item.value().get()))
      found.packed.emplace(item.key(), packed);
  for (const auto& item : module.named_parameters()) found.tensors[item.key()] = item.value();
  for (const auto& item : module.named_buffers()) found.tensors[item.key()] = item.value();
  std::erase_if(found.tensors, [](const auto& item) { return !item.second.defined(); });
  // What prepare() added belongs to the quantization.
  for (const auto& [name, layer] : found.layers) {
    if (!layer.quantizer()) continue;
    for (const char* state :
         {"weight_scale", "weight_zero_point", "weight_outer_scale", "weight_outer_offset",
          "lattice_scale", "lattice_zero_point", "input_scale", "input_zero_point", "input_low",
          "input_high", "quantizer.bits"})
      found.tensors.erase(joined(name, state));
  }
  return found;
}

std::vector<QuantizedWeights> quantized(const torch::nn::Module& module, const Contents& contents,
                                        std::optional<at::ScalarType> dtype) {
  std::vector<QuantizedWeights> layers = convert(module, dtype);
  for (const auto& [name, packed] : contents.packed) layers.push_back(packed->weights(name));
  return layers;
}

[[noreturn]] void refuse(const std::string& folder, const std::string& name,
                         const std::string& why) {
  throw InvalidArgument(folder + ": " + name + " " + why + ".");
}

std::string sizes_of(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes();
  return text.str();
}

// What load() will do once everything is checked.
using Action = std::function<void()>;

Action load_layer(const Contents& contents, const std::string& folder,
                  const QuantizedWeights& weights) {
  const std::string& name = weights.name;
  if (const auto packed = contents.packed.find(name); packed != contents.packed.end()) {
    // Made beforehand, so that what it refuses changes nothing.
    const auto ready = std::make_shared<PackedLinearImpl>(packed->second->options);
    ready->set_weights(weights);
    return [to = packed->second, ready] { to->set_weights(*ready); };
  }
  const auto found = contents.layers.find(name);
  if (found == contents.layers.end())
    refuse(folder, name, "is a quantized layer of the checkpoint, but none of the module");
  const ModuleLayer& layer = found->second;
  if (layer.quantizer()) refuse(folder, name, "must be loaded before it is prepared");
  if (layer.weight->size(0) != weights.codes.size(0) ||
      layer.weight->numel() != weights.codes.numel())
    refuse(
        folder, name,
        "has " + sizes_of(weights.codes) + " codes, but its weight is " + sizes_of(*layer.weight));
  if (weights.input && !dynamic_cast<DropIn*>(layer.module.get()))
    refuse(folder, name,
           "must be a qat::PackedLinear or qat::Quant" + layer.type +
               ", since the checkpoint quantizes its input");
  return [layer, weights] {
    layer.weight->copy_(
        dequantize_weights(weights, layer.weight->scalar_type()).view_as(*layer.weight));
    if (weights.input) attach_input(layer, weights);
  };
}

// On whatever devices they are.
bool same_bits(const at::Tensor& one, const at::Tensor& other) {
  return one.scalar_type() == other.scalar_type() && at::equal(one.cpu(), other.cpu());
}

bool same_bits(const std::optional<at::Tensor>& one, const std::optional<at::Tensor>& other) {
  return one.has_value() == other.has_value() && (!one || same_bits(*one, *other));
}

void compare(const QuantizedWeights& own, const QuantizedWeights& stored,
             std::vector<std::string>& differences) {
  const auto check = [&](const char* what, bool same) {
    if (!same) differences.push_back(own.name + "." + what + " differs.");
  };
  check("codes", same_bits(own.codes, stored.codes));
  check("scale", same_bits(own.scale, stored.scale));
  check("zero_point", same_bits(own.zero_point, stored.zero_point));
  check("input_scale", same_bits(own.input_scale, stored.input_scale));
  check("input_zero_point", same_bits(own.input_zero_point, stored.input_zero_point));
}

}  // namespace

void export_folder(const torch::nn::Module& module, const std::filesystem::path& folder,
                   const ExportOptions& options) {
  const at::NoGradGuard no_grad;
  Contents contents = contents_of(module);
  Checkpoint checkpoint;
  checkpoint.layers = quantized(module, contents, options.dtype);
  if (checkpoint.layers.empty())
    throw InvalidArgument(
        "The module must have quantized layers, but has none; call qat::prepare first.");
  for (const QuantizedWeights& layer : checkpoint.layers)
    contents.tensors.erase(joined(layer.name, "weight"));
  for (const auto& [name, tensor] : contents.tensors)
    checkpoint.others[name] =
        tensor.detach().to(tensor.is_floating_point() ? options.dtype.value_or(tensor.scalar_type())
                                                      : tensor.scalar_type());
  std::vector<std::string> ignore;
  for (const auto& [name, layer] : contents.layers)
    if (layer.type == "Linear" && contents.tensors.count(joined(name, "weight")))
      ignore.push_back(name);
  save_checkpoint(folder, checkpoint, options.format, ignore);
}

void load(torch::nn::Module& module, const std::filesystem::path& path) {
  const at::NoGradGuard no_grad;
  const Checkpoint checkpoint = load_checkpoint(path);
  const std::string folder = path.string();
  Contents contents = contents_of(module);
  std::vector<Action> actions;
  for (const QuantizedWeights& weights : checkpoint.layers) {
    actions.push_back(load_layer(contents, folder, weights));
    contents.tensors.erase(joined(weights.name, "weight"));
  }
  for (const auto& [name, packed] : contents.packed)
    if (!packed->has_weights() && std::none_of(checkpoint.layers.begin(), checkpoint.layers.end(),
                                               [&](const auto& one) { return one.name == name; }))
      refuse(folder, name, "is a PackedLinear, but no quantized layer of the checkpoint");
  for (const auto& [name, stored] : checkpoint.others) {
    const auto own = contents.tensors.find(name);
    if (own == contents.tensors.end())
      refuse(folder, name, "is in the checkpoint, but not in the module");
    if (own->second.sizes() != stored.sizes())
      refuse(folder, name,
             "is " + sizes_of(stored) + " in the checkpoint, but " + sizes_of(own->second) +
                 " in the module");
    actions.push_back([to = own->second, stored] { to.copy_(stored); });
    contents.tensors.erase(own);
  }
  if (!contents.tensors.empty())
    refuse(folder, contents.tensors.begin()->first, "is in the module, but not in the checkpoint");
  for (const Action& action : actions) action();
}

Verification verify(const torch::nn::Module& module, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  const Checkpoint checkpoint = load_checkpoint(folder);
  Contents contents = contents_of(module);
  // Stored in a dtype that export_folder was asked for, or in the module's own.
  const auto dtype = checkpoint.layers.empty()
                         ? std::nullopt
                         : std::optional(checkpoint.layers.front().scale.scalar_type());
  std::map<std::string, QuantizedWeights> own;
  for (const QuantizedWeights& one : quantized(module, contents, dtype)) own[one.name] = one;
  Verification found;
  for (const QuantizedWeights& stored : checkpoint.layers) {
    ++found.layers;
    contents.tensors.erase(joined(stored.name, "weight"));
    if (const auto mine = own.find(stored.name); mine != own.end()) {
      compare(mine->second, stored, found.differences);
      own.erase(mine);
      continue;
    }
    const auto layer = contents.layers.find(stored.name);
    if (layer == contents.layers.end()) {
      found.differences.push_back(stored.name + " is not in the module.");
      continue;
    }
    const at::Tensor weight = *layer->second.weight;
    if (!same_bits(dequantize_weights(stored, weight.scalar_type()).view_as(weight), weight))
      found.differences.push_back(stored.name + ".weight differs.");
  }
  for (const auto& [name, weights] : own)
    found.differences.push_back(name + " is not quantized in the checkpoint.");
  for (const auto& [name, stored] : checkpoint.others) {
    const auto mine = contents.tensors.find(name);
    if (mine == contents.tensors.end())
      found.differences.push_back(name + " is not in the module.");
    else if (!same_bits(mine->second.to(stored.scalar_type()), stored))
      found.differences.push_back(name + " differs.");
    if (mine != contents.tensors.end()) contents.tensors.erase(mine);
  }
  for (const auto& [name, tensor] : contents.tensors)
    found.differences.push_back(name + " is not in the checkpoint.");
  return found;
}

}  // namespace qat
