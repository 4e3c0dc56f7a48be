"""Blocks and layers as calibration finds them: their order, what reaches them, what is outside of them."""

import copy

import architectures
import pytest
import torch
import torchqat
from architectures import recipe, tokens
from sentences import sentence
from test_ptq import forward
from torch import nn
from torchqat.model.blocks import find_blocks
from torchqat.ptq.blocks import open_blocks
from torchqat.ptq.shared_inputs import find_stages


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


def test_blocks_are_called_as_the_model_calls_them(llama):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: gptq}"))
    blocks, hidden = open_blocks(prepared, tokens(2), forward)
    assert [block.name for block in blocks] == ["model.layers.0", "model.layers.1"]
    with torch.no_grad():
        for block in blocks:
            hidden = [block.run(index, batch) for index, batch in enumerate(hidden)]
        expected = forward(prepared, tokens(2)[1]).logits
        assert torch.equal(prepared.lm_head(prepared.model.norm(hidden[1])), expected)


def test_stages_are_the_layers_that_share_an_input(llama):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: gptq}"))
    blocks, hidden = open_blocks(prepared, tokens(1), forward)
    stages, unreached = find_stages(blocks[1], hidden)
    leaves = [[name.rpartition(".")[2] for name, _ in stage.layers] for stage in stages]
    assert leaves == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert stages[0].producer is blocks[1].module.input_layernorm and stages[1].producer is None
    assert unreached == []


def test_a_model_without_blocks_is_one_block():
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
    x = torch.randn(200, 32)
    expected = model(x).detach()
    errors = {}
    for method in ("rtn", "gptq"):
        rule = '  - match: "*"\n    weight: {dtype: int3, grid: full, scale: mse}\n'
        text = f"version: 1\nlayers:\n{rule}initialize: {{method: {method}}}\n"
        prepared = torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(text, "recipe"))
        assert find_blocks(prepared) == []
        torchqat.calibrate(prepared, [x])
        errors[method] = (prepared(x) - expected).square().mean().item()
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_a_head_that_a_rule_names_is_calibrated_last(llama):
    weight = "{dtype: int4, group_size: 32, scale: mse}"
    text = architectures.RECIPE.format(weight=weight, input="", initialize="{method: gptq}")
    text = text.replace("initialize:", f"  - match: lm_head\n    weight: {weight}\ninitialize:")
    prepared = torchqat.prepare(copy.deepcopy(llama), torchqat.parse_recipe(text, "recipe"))
    found = torchqat.calibrate(prepared, tokens(), forward)
    assert found.losses["lm_head"] > 0 and list(found.losses)[-1] == "lm_head"


class Experts(nn.Module):
    """The second expert is only reached by inputs that sum to more than a thousand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})])
        self.layers[0].forward = lambda x: self.layers[0]["b" if x.sum() > 1000 else "a"](x)

    def forward(self, x):
        return self.layers[0](x)


def test_a_layer_that_is_never_reached_is_rounded_to_nearest_and_said():
    text = 'version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4}\ninitialize: {method: gptq}\n'
    model = torchqat.prepare(Experts(), torchqat.parse_recipe(text, "recipe"))
    found = torchqat.calibrate(model, [torch.randn(20, 16)])
    assert found.warnings == [sentence("ptq.layer-not-reached", layer="layers.0.b")]
    assert model.layers[0]["b"].weight_scale.isfinite().all()
