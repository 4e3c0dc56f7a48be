#include "qat/ops/quant_linear.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

// The tensors that are saved, in order; `kept` follow them.
enum Argument {
  kX,
  kWeight,
  kBias,
  kWeightScale,
  kWeightZero,
  kInputScale,
  kInputZero,
  kWeightOuter,
  kInputOuter,
  kArguments
};

// Saves its arguments, which live anyway, and nothing that it computed.
class QuantLinear : public torch::autograd::Function<QuantLinear> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Optional& bias, const Optional& weight_scale,
                            const Optional& weight_zero_point, const Optional& input_scale,
                            const Optional& input_zero_point, at::TensorList kept,
                            const std::string& weight_quantizer, const std::string& input_quantizer,
                            const Optional& weight_outer_scale, const Optional& input_outer_scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    variable_list saved;
    std::vector<int64_t> edges;  // where each argument stands among those that are there, else -1
    int64_t there = 0;
    for (const Optional& one :
         {Optional(x), Optional(weight), bias, weight_scale, weight_zero_point, input_scale,
          input_zero_point, weight_outer_scale, input_outer_scale}) {
      saved.push_back(one.value_or(at::Tensor()));
      edges.push_back(one && one->defined() ? there++ : -1);
    }
    saved.insert(saved.end(), kept.begin(), kept.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["edges"] = std::move(edges);
    ctx->saved_data["weight_quantizer"] = weight_quantizer;
    ctx->saved_data["input_quantizer"] = input_quantizer;
    return quant_linear(x, weight, bias, weight_scale, weight_zero_point, input_scale,
                        input_zero_point, kept, weight_quantizer, input_quantizer,
                        weight_outer_scale, input_outer_scale);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto edges = ctx->saved_data["edges"].toIntVector();
    const auto given = [&](Argument one) {
      return saved[one].defined() ? Optional(saved[one]) : std::nullopt;
    };
    const auto needs = [&](Argument one) {
      return edges[one] >= 0 && ctx->needs_input_grad(static_cast<size_t>(edges[one]));
    };
    const auto [grad_x, grad_weight, weight_scale, weight_zero, input_scale, input_zero] =
        quant_linear_backward(grads[0], saved[kX], saved[kWeight], given(kWeightScale),
                              given(kWeightZero), given(kInputScale), given(kInputZero),
                              at::TensorList(saved.data() + kArguments, saved.size() - kArguments),
                              ctx->saved_data["weight_quantizer"].toStringRef(),
                              ctx->saved_data["input_quantizer"].toStringRef(), given(kWeightOuter),
                              given(kInputOuter),
                              {needs(kX) || needs(kInputScale) || needs(kInputZero),
                               needs(kWeight) || needs(kWeightScale) || needs(kWeightZero)});
    const at::Tensor found[kInputZero + 1] = {grad_x,      grad_weight, at::Tensor(), weight_scale,
                                              weight_zero, input_scale, input_zero};
    variable_list result(saved.size() +
                         2);  // the two texts are arguments as well, outer scales last
    for (const Argument one : {kX, kWeight, kWeightScale, kWeightZero, kInputScale, kInputZero})
      if (needs(one)) result[one] = found[one];
    if (needs(kBias))
      result[kBias] = grads[0]
                          .reshape_symint({-1, saved[kWeight].sym_size(0)})
                          .sum(0)
                          .to(saved[kBias].scalar_type());
    return result;
  }
};

at::Tensor quant_linear_autograd(const at::Tensor& x, const at::Tensor& weight,
                                 const Optional& bias, const Optional& weight_scale,
                                 const Optional& weight_zero_point, const Optional& input_scale,
                                 const Optional& input_zero_point, at::TensorList kept,
                                 std::string_view weight_quantizer,
                                 std::string_view input_quantizer, const Optional& weight_outer,
                                 const Optional& input_outer) {
  return QuantLinear::apply(x, weight, bias, weight_scale, weight_zero_point, input_scale,
                            input_zero_point, kept, std::string(weight_quantizer),
                            std::string(input_quantizer), weight_outer, input_outer);
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, Autograd, m) { m.impl("quant_linear", &quant_linear_autograd); }

}  // namespace qat
