#include "qat/nn/packed_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/serialize/archive.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qat/checkpoint/formats/format.h"
#include "qat/checkpoint/formats/spec_json.h"
#include "qat/error.h"
#include "qat/nn/input_quantizer.h"
#include "qat/ops/packed_linear.h"

namespace qat {
namespace {

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

std::string text_of(const at::Tensor& bytes) {
  return {reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>()),
          static_cast<size_t>(bytes.numel())};
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

}  // namespace

PackedWeights pack_weights(const QuantizedWeights& weights) {
  if (!weights.weight.takes_widths())
    throw InvalidArgument("PackedLinear must have integer weights under scales of one level, but " +
                          weights.name + " has " + describe(weights.weight) + ".");
  const int64_t cols = block_shape(weights.weight)[1];
  PackedWeights packed;
  packed.bits = weights.weight.bits <= 4 ? 4 : 8;
  packed.group_size = cols == -1 ? weights.codes.size(1) : cols;
  packed.rows = weights.codes.size(0);
  packed.panels = pack_panels(weights.codes, packed.bits, packed.group_size);
  packed.scale = pack_panel_values(per_group(weights.scale, weights, packed.group_size));
  if (weights.zero_point)
    packed.zero_point =
        pack_panel_values(per_group(*weights.zero_point, weights, packed.group_size));
  return packed;
}

at::Tensor PackedWeights::codes(int64_t cols) const {
  return unpack_panels(panels, bits, group_size, rows, cols);
}

PackedLinearImpl::PackedLinearImpl(const torch::nn::LinearOptions& options) : options(options) {
  reset();
}

PackedLinearImpl::PackedLinearImpl(const QuantizedWeights& weights, const at::Tensor& given_bias)
    : PackedLinearImpl(torch::nn::LinearOptions(weights.codes.size(1), weights.codes.size(0))
                           .bias(given_bias.defined())) {
  set_weights(weights);
  if (given_bias.defined()) bias.set_data(given_bias.detach().clone());
}

void PackedLinearImpl::reset() {
  bias =
      register_buffer("bias", options.bias() ? at::zeros({options.out_features()}) : at::Tensor());
}

void PackedLinearImpl::set_weights(const QuantizedWeights& weights) {
  const at::NoGradGuard no_grad;
  if (weights.codes.size(0) != options.out_features() ||
      weights.codes.size(1) != options.in_features())
    throw InvalidArgument(weights.name + " must be [" + std::to_string(options.out_features()) +
                          ", " + std::to_string(options.in_features()) +
                          "], but the weights are [" + std::to_string(weights.codes.size(0)) +
                          ", " + std::to_string(weights.codes.size(1)) + "].");
  packed_ = pack_weights(weights);
  spec_ = weights.weight;
  input_ = weights.input;
  input_scale_ = weights.input_scale.value_or(at::Tensor());
  input_zero_point_ = weights.input_zero_point.value_or(at::Tensor());
  move(device_);
}

void PackedLinearImpl::set_weights(const PackedLinearImpl& other) {
  packed_ = other.packed_;
  spec_ = other.spec_;
  input_ = other.input_;
  input_scale_ = other.input_scale_;
  input_zero_point_ = other.input_zero_point_;
  move(device_);
}

QuantizedWeights PackedLinearImpl::weights(const std::string& name) const {
  if (!has_weights())
    throw LogicError("PackedLinear " + name + " has no weights yet; call qat::load.");
  const int64_t rows = options.out_features();
  const int64_t height = block_shape(spec_)[0] == -1 ? rows : block_shape(spec_)[0];
  // Rows of a block were given the same values.
  const auto grid = [&](const at::Tensor& packed) {
    return unpack_panel_values(packed, rows).slice(0, 0, std::nullopt, height).cpu().contiguous();
  };
  QuantizedWeights found;
  found.name = name;
  found.weight = spec_;
  found.input = input_;
  found.codes = packed_.codes(options.in_features()).cpu();
  found.scale = grid(packed_.scale);
  if (packed_.zero_point.defined()) found.zero_point = grid(packed_.zero_point);
  found.input_scale = given(input_scale_);
  found.input_zero_point = given(input_zero_point_);
  return found;
}

at::Tensor PackedLinearImpl::forward(const at::Tensor& x) {
  if (!has_weights()) throw LogicError("A PackedLinear has no weights yet; call qat::load first.");
  const auto add = bias.defined() ? std::optional(bias.to(x.scalar_type())) : std::nullopt;
  const at::Tensor input =
      input_ ? rounded_input(x, *input_, input_->bits, input_scale_, given(input_zero_point_)) : x;
  return packed_linear(input, packed_.panels, packed_.scale, given(packed_.zero_point), add,
                       packed_.bits, packed_.group_size, packed_.rows);
}

int64_t PackedLinearImpl::bytes() const {
  size_t bytes = 0;
  for (const at::Tensor& one : {packed_.panels, packed_.scale, packed_.zero_point, bias})
    if (one.defined()) bytes += one.nbytes();
  return static_cast<int64_t>(bytes);
}

void PackedLinearImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  torch::nn::Module::to(device, dtype, non_blocking);
  move(device);
}

void PackedLinearImpl::to(torch::Device device, bool non_blocking) {
  torch::nn::Module::to(device, non_blocking);
  move(device);
}

void PackedLinearImpl::move(torch::Device device) {
  device_ = device;
  for (at::Tensor* one :
       {&packed_.panels, &packed_.scale, &packed_.zero_point, &input_scale_, &input_zero_point_})
    if (one->defined()) *one = one->to(device);
}

void PackedLinearImpl::pretty_print(std::ostream& stream) const {
  stream << "qat::PackedLinear(in_features=" << options.in_features()
         << ", out_features=" << options.out_features() << ", bias=" << std::boolalpha
         << options.bias() << ", weight=" << (has_weights() ? describe(spec_) : "none yet") << ")";
}

void PackedLinearImpl::save(torch::serialize::OutputArchive& archive) const {
  torch::nn::Module::save(archive);
  if (!has_weights()) return;
  nlohmann::json spec = {{"weight", to_json(spec_)}};
  if (input_) spec["input"] = to_json(*input_);
  const QuantizedWeights own = weights("");
  archive.write("spec", bytes_of(spec.dump()), /*is_buffer=*/true);
  archive.write("codes", own.codes, /*is_buffer=*/true);
  archive.write("scale", own.scale, /*is_buffer=*/true);
  if (own.zero_point) archive.write("zero_point", *own.zero_point, /*is_buffer=*/true);
  if (own.input_scale) archive.write("input_scale", *own.input_scale, /*is_buffer=*/true);
  if (own.input_zero_point)
    archive.write("input_zero_point", *own.input_zero_point, /*is_buffer=*/true);
}

void PackedLinearImpl::load(torch::serialize::InputArchive& archive) {
  torch::nn::Module::load(archive);
  at::Tensor spec;
  if (!archive.try_read("spec", spec, /*is_buffer=*/true)) return;
  const auto json = nlohmann::json::parse(text_of(spec));
  QuantizedWeights own;
  own.weight = spec_from_json(json.at("weight"));
  if (json.contains("input")) own.input = spec_from_json(json.at("input"));
  archive.read("codes", own.codes, /*is_buffer=*/true);
  archive.read("scale", own.scale, /*is_buffer=*/true);
  const auto read = [&](const char* name, std::optional<at::Tensor>& to) {
    at::Tensor found;
    if (archive.try_read(name, found, /*is_buffer=*/true)) to = found;
  };
  read("zero_point", own.zero_point);
  read("input_scale", own.input_scale);
  read("input_zero_point", own.input_zero_point);
  set_weights(own);
}

}  // namespace qat
