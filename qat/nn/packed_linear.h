#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/options/linear.h>
#include <torch/nn/pimpl.h>

#include <optional>
#include <string>

#include "qat/artifact.h"
#include "qat/ops/api.h"

namespace qat {

// A weight as the packed product takes it (ops/packed_linear.h).
struct QAT_API PackedWeights {
  at::Tensor panels;
  at::Tensor scale;
  at::Tensor zero_point;  // undefined where all are 0
  int64_t bits = 0;       // 4 or 8; the codes of other widths fit one of them
  int64_t group_size = 0;
  int64_t rows = 0;

  // int8 [out, in].
  at::Tensor codes(int64_t cols) const;
};
// Throws std::invalid_argument for FP8.
QAT_API PackedWeights pack_weights(const QuantizedWeights& weights);

// A linear layer for inference whose weight stays packed in memory, in 4 bits or 8: a quarter or
// an eighth of float32, scales aside. Programs that deploy declare it where those that train have
// a torch::nn::Linear or qat::QuantLinear; qat::load fills it from a checkpoint. Inputs are rounded
// as training rounded them, where the checkpoint says so. ops/packed_linear.h says how it
// multiplies: on a CPU. It is loaded, moved and exported on any device. float32, bfloat16 and
// float16 inputs are taken, whatever the bias is in.
class QAT_API PackedLinearImpl : public torch::nn::Cloneable<PackedLinearImpl> {
 public:
  PackedLinearImpl(int64_t in_features, int64_t out_features)
      : PackedLinearImpl(torch::nn::LinearOptions(in_features, out_features)) {}
  explicit PackedLinearImpl(const torch::nn::LinearOptions& options);
  // Of these weights; `bias` [out] or undefined.
  PackedLinearImpl(const QuantizedWeights& weights, const at::Tensor& bias);

  // [..., in] to [..., out], in the dtype of x. It gives no gradient, and refuses an x that wants
  // one: call it under torch::NoGradGuard. Throws std::logic_error before it has a weight.
  at::Tensor forward(const at::Tensor& x);

  // Throws std::invalid_argument for weights of another shape, for FP8, and for inputs that it
  // cannot round.
  void set_weights(const QuantizedWeights& weights);
  // Those of another, with which it then shares their memory where both are on one device.
  void set_weights(const PackedLinearImpl& other);
  // The same weights, bit for bit. Throws std::logic_error before it has any.
  QuantizedWeights weights(const std::string& name) const;
  bool has_weights() const { return packed_.panels.defined(); }
  // Bytes of weight, scales, zero points and bias.
  int64_t bytes() const;

  // Of torch::nn::Module. A dtype is that of the bias alone.
  void reset() override;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;
  using torch::nn::Module::to;
  void pretty_print(std::ostream& stream) const override;
  void load(torch::serialize::InputArchive& archive) override;
  void save(torch::serialize::OutputArchive& archive) const override;

  torch::nn::LinearOptions options;
  at::Tensor bias;

 private:
  void move(torch::Device device);

  QuantSpec spec_;
  std::optional<QuantSpec> input_;
  PackedWeights packed_;
  at::Tensor input_scale_, input_zero_point_;
  torch::Device device_ = torch::kCPU;  // of all of them
};
TORCH_MODULE(PackedLinear);

}  // namespace qat
