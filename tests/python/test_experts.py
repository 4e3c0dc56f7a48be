"""Experts as transformers 5 has them, a parameter with a matrix for each: trained, rounded with data, told about."""

import copy
import gc
import weakref

import pytest
import torch
import torchqat
import transformers
from sentences import matches
from torch import nn
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import quant_layers
from torchqat.training.recomputation import recompute_activations

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


def _qwen3_moe():
    sizes = {**SIZES, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes))


def _gpt_oss():
    config = transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    return transformers.GptOssForCausalLM(config)


def _llama4():
    sizes = {**SIZES, "intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16}
    return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**sizes))


def _jetmoe():
    sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 16}
    return transformers.JetMoeForCausalLM(
        transformers.JetMoeConfig(**sizes, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2)
    )


def _nemotron_h():
    sizes = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    config = transformers.NemotronHConfig(
        **sizes, **experts, num_hidden_layers=2, hybrid_override_pattern="E*", head_dim=16,
        moe_shared_expert_intermediate_size=32,
    )  # fmt: skip
    return transformers.NemotronHForCausalLM(config)


MODELS = {
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,  # transposed, gate and up interleaved, with biases
    "llama4": _llama4,  # beside transformers' interface: all experts in one product
    "jetmoe": _jetmoe,  # beside it, too: one module per matrix
    "nemotron_h": _nemotron_h,  # without a gate
}
TOKENS = torch.arange(64).view(2, 32) * 7 % 128


def build(name):
    """A model whose experts have weights that matter."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 3:
            parameter.data.normal_(std=0.1)
    return model


def recipe_of(weight="{dtype: int4, group_size: 16}", rest="", match="blocks"):
    return torchqat.parse_recipe(f'version: 1\nlayers:\n  - match: "{match}"\n    weight: {weight}\n{rest}')


def experts_of(model):
    return [(name, layer) for name, layer in quant_layers(model) if isinstance(layer, QuantExperts)]


def logits(model, tokens=TOKENS):
    return model(tokens, use_cache=False).logits


def float_twin(model, prepared):
    """``model`` with the weights that the forward of ``prepared`` uses."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for name, layer in quant_layers(prepared):
        weight = layer() if isinstance(layer, QuantExperts) else layer.quantized_weight()
        target = parameters[name if name in parameters else f"{name}.weight"]
        target.data.copy_(weight.detach().view(target.shape))
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_a_wide_rule_reaches_experts_and_leaves_routers(name):
    model = build(name)
    plan = torchqat.make_plan(model, recipe_of(match="model.*"))
    matrices = [p for key, p in model.named_parameters() if p.dim() == 3 and "conv" not in key]
    planned = [layer for layer in plan.layers if layer.type == "Experts"]
    assert [layer.matrices for layer in planned] == [4] * len(matrices) and matrices
    elements = sum(layer.matrices * layer.in_features * layer.out_features for layer in planned)
    assert elements == sum(p.numel() for p in matrices)
    routers = [left for left in plan.left if left.why.startswith("router")]
    assert routers and not any("router" in layer.name or layer.name.endswith(".gate") for layer in plan.layers)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_the_rounded_weights(name, implementation):
    """Every implementation of transformers' interface, and models beside it: outputs and gradients are those of a model
    with the rounded weights, which knows nothing of quantization."""
    model = build(name)
    if hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation(implementation)
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of())
    twin = float_twin(model, prepared)
    found, wanted = logits(prepared), logits(twin)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (found - logits(model)).abs().max() > 0.01
    found.square().mean().backward()
    wanted.square().mean().backward()
    gradients = {key: p.grad for key, p in twin.named_parameters() if p.grad is not None}
    for key, parameter in prepared.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-4, atol=1e-7, msg=key)


def test_names_and_states_stay_those_of_the_float_model():
    model = build("qwen3_moe")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("{dtype: int4, group_size: 16, scale: mse}"))
    assert set(model.state_dict()) <= set(prepared.state_dict())
    assert isinstance(prepared.model.layers[0].mlp.experts, type(model.model.layers[0].mlp.experts))
    other = build("qwen3_moe")
    for parameter in other.parameters():
        parameter.data.mul_(2.0)
    prepared.load_state_dict(other.state_dict())  # a float state: scales are derived from its weights
    fresh = torchqat.prepare(other, recipe_of("{dtype: int4, group_size: 16, scale: mse}"))
    assert torch.equal(logits(prepared), logits(fresh))
    again = torchqat.prepare(build("qwen3_moe"), recipe_of("{dtype: int4, group_size: 16, scale: mse}"))
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(logits(again), logits(prepared))


def test_learned_scales_of_experts_train():
    prepared = torchqat.prepare(build("qwen3_moe"), recipe_of("{dtype: int4, group_size: 16, scale: learned}"))
    logits(prepared).square().mean().backward()
    for name, layer in experts_of(prepared):
        reached = layer.weight.grad.flatten(1).any(1)
        scales = layer.weight_scale.grad.view(layer.count, -1).any(1)
        assert reached.any() and torch.equal(scales, reached), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rounded_experts_are_not_kept_for_the_backward(implementation):
    model = torchqat.prepare(build("qwen3_moe"), recipe_of())
    model.set_experts_implementation(implementation)
    kept = []
    for _, layer in experts_of(model):
        layer.register_forward_hook(lambda _module, _args, output: kept.append(weakref.ref(output)))
    loss = logits(model).square().mean()
    gc.collect()
    assert len(kept) == 4 and all(tensor() is None for tensor in kept)
    loss.backward()


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = torchqat.prepare(build("qwen3_moe"), recipe_of()).train()
        if checkpointing:
            recompute_activations(model)
        logits(model).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name


def test_a_few_tokens_round_the_experts_that_they_reach_alone(monkeypatch):
    model = torchqat.prepare(build("qwen3_moe"), recipe_of())
    rounded = []
    own = QuantExperts.rounded_rows
    monkeypatch.setattr(QuantExperts, "rounded_rows", lambda *a: rounded.append(a[1:]) or own(*a))
    with torch.no_grad():
        one = logits(model, TOKENS[:1, :1])
        assert len(rounded) == 2 * 2 * 2  # of two layers, two experts, two matrices
        rounded.clear()
        all_of_them = logits(model, TOKENS[:1])
        assert not rounded
    torch.testing.assert_close(one[0, 0], all_of_them[0, 0], rtol=0, atol=1e-5)


GPTQ = "initialize: {method: gptq}\n"


def test_experts_of_unknown_direction_are_an_error_of_the_plan():
    class MyExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(4, 16, 16))

        def forward(self, x):
            return torch.einsum("ti,eio->to", x, self.weights)

    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", match="*", weights="0.weights")):
        torchqat.make_plan(nn.Sequential(MyExperts()), recipe_of(match="*"))


def test_a_schedule_may_begin_in_floating_point():
    rest = "schedule: [{until: 50%, weight: float}, {until: 100%, weight: int4}]\n"
    recipe = recipe_of("{dtype: int4, group_size: 16, scale: mse}", rest)
    model, said_in_first_step = torchqat.prepare(build("qwen3_moe"), recipe), []
    schedule = torchqat.Schedule(model, recipe, 2, say=said_in_first_step.append)
    assert torch.equal(logits(model), logits(build("qwen3_moe")))
    torchqat.calibrate(model, [TOKENS], logits)
    logits(model)
    schedule.step()
    schedule.step()
    assert not said_in_first_step and all(layer.weight_bits == 4 for _, layer in experts_of(model))


def test_frozen_codes_are_those_of_every_forward_and_backward():
    model = torchqat.prepare(build("qwen3_moe"), recipe_of("{dtype: int4, group_size: 16, scale: learned}"))
    for _, layer in experts_of(model):
        layer.freeze_codes()
        layer.weight_scale.data.mul_(1.3)
    for implementation in IMPLEMENTATIONS:
        model.set_experts_implementation(implementation)
        twin = float_twin(build("qwen3_moe"), model)
        twin.set_experts_implementation(implementation)
        with torch.no_grad():
            torch.testing.assert_close(logits(model, TOKENS[:1, :1]), logits(twin, TOKENS[:1, :1]), rtol=0, atol=1e-5)
        hidden = torch.randn(1, 32, 64).requires_grad_()
        other = hidden.detach().clone().requires_grad_()
        for network, given in ((model, hidden), (twin, other)):
            network(inputs_embeds=given, use_cache=False).logits.square().mean().backward()
        torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_weights_that_change_before_the_backward_are_an_error(implementation):
    model = torchqat.prepare(build("qwen3_moe"), recipe_of())
    model.set_experts_implementation(implementation)
    loss = logits(model).square().mean()
    with torch.no_grad():
        experts_of(model)[0][1].weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed between a forward and its backward"):
        loss.backward()


class Custom(nn.Module):
    """Experts beside transformers' interface, whose second argument is something else."""

    def __init__(self):
        super().__init__()
        self.is_transposed = False
        self.weights = nn.Parameter(torch.randn(8, 16, 16))

    def forward(self, x, lengths):
        return torch.einsum("ti,eoi->to", x, self.weights)


class CustomExperts(Custom):
    pass


def test_only_transformers_interface_says_which_experts_are_reached():
    model = torchqat.prepare(nn.ModuleDict({"experts": CustomExperts()}), recipe_of(match="*"))
    x, lengths = torch.randn(4, 16), torch.tensor([2, 2])
    with_gradients = model.experts(x, lengths)
    with torch.no_grad():
        assert torch.equal(model.experts(x, lengths), with_gradients)


def test_experts_of_two_modules_are_refused():
    model = nn.ModuleDict({"a": CustomExperts(), "b": CustomExperts()})
    model.b.weights = model.a.weights
    with pytest.raises(torchqat.UserError, match=matches("model.shared-experts", layer="a.weights", holders="a and b")):
        torchqat.prepare(model, recipe_of(match="*"))


def test_experts_whose_forward_was_replaced_are_no_layer():
    model = nn.ModuleDict({"experts": CustomExperts()})
    model.experts.forward = lambda x, lengths: x
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="experts.weights")):
        torchqat.prepare(model, recipe_of(match="*"))
