"""GPTQ of experts, on the tokens of each."""

import copy

import torch
import torchqat
from sentences import said
from test_experts import GPTQ, TOKENS, build, experts_of, logits, recipe_of
from torch import nn
from torchqat.layers.prepared import quant_layers
from torchqat.ptq.experts import round_experts
from torchqat.ptq.result import Calibration


def test_gptq_is_better_than_rounding_and_learns_from_each_experts_tokens():
    model, batches = build("gpt_oss"), [TOKENS + i for i in range(0, 64, 2)]
    batches = [batch % 128 for batch in batches]
    errors = {}
    for method in ("rtn", "mse", "gptq"):
        rest = f"initialize: {{method: {method}}}\n"
        prepared = torchqat.prepare(
            copy.deepcopy(model), recipe_of("{dtype: int3, group_size: 16, grid: full, scale: mse}", rest)
        )
        found = torchqat.calibrate(prepared, batches, logits)
        errors[method] = (logits(prepared) - logits(model)).norm().item()
        assert all(torch.isfinite(parameter).all() for parameter in prepared.parameters())
    assert errors["gptq"] < 0.9 * errors["mse"] and errors["gptq"] < 0.9 * errors["rtn"]
    assert all(found.losses[name] > 0 for name, _ in experts_of(prepared))


def test_gptq_of_an_expert_is_that_of_a_linear_layer_on_its_tokens():
    """One expert that every token reaches, against ``nn.Linear`` with the same weight and the same inputs."""
    model = build("qwen3_moe")
    experts = model.model.layers[0].mlp.experts
    spec = "{dtype: int4, group_size: 16, grid: full, scale: mse}"
    x = torch.randn(256, 64)
    sent = torch.tensor([[1, 2]]).expand(256, 2)
    shares = torch.full((256, 2), 0.5)
    prepared = torchqat.prepare(nn.ModuleDict({"experts": copy.deepcopy(experts)}), recipe_of(spec, match="*"))

    class One:
        def run(self, index, given):
            prepared.experts(given, sent, shares)

        def own_layers(self):
            return quant_layers(prepared)

    result = Calibration()
    settings = recipe_of(spec, "initialize: {method: gptq}\n").initialize
    round_experts(One(), [x], settings, result)

    linear = nn.Sequential(nn.Linear(64, 64, bias=False))
    linear[0].weight.data.copy_(experts.gate_up_proj[1])
    torchqat.calibrate(
        torchqat.prepare(linear, recipe_of(spec, "initialize: {method: gptq, objective: layer}\n", "*")), [x]
    )
    layer = prepared.experts.quantized["gate_up_proj"]
    begin, end = layer.rows_of(1)
    assert torch.equal(layer.quantized_weight()[begin:end], linear[0].quantized_weight())
    few = [warning for warning in result.warnings if said(warning, "calibration.few-tokens", few=2, count=4)]
    assert len(few) == 2  # experts 0 and 3, in both parameters


def test_experts_of_two_blocks_are_solved_once_on_the_tokens_of_both():
    model = build("qwen3_moe")
    model.model.layers[1].mlp.experts = model.model.layers[0].mlp.experts
    prepared = torchqat.prepare(model, recipe_of("{dtype: int4, group_size: 16, scale: mse}", GPTQ))
    found = torchqat.calibrate(prepared, [TOKENS], logits)
    assert found.tokens["model.layers.0.mlp.experts.gate_up_proj"] == 2 * TOKENS.numel()
    assert not any(name.startswith("model.layers.1.mlp.experts") for name in found.losses)


def test_modules_that_do_not_tell_their_tokens_are_told_of():
    prepared = torchqat.prepare(build("llama4"), recipe_of("{dtype: int4, group_size: 16, scale: mse}", GPTQ))
    found = torchqat.calibrate(prepared, [TOKENS], logits)
    name = "model.layers.0.feed_forward.experts.gate_up_proj"
    assert any(said(warning, "calibration.unrouted", first=name, more=" and 3 more") for warning in found.warnings)
