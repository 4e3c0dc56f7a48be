"""Layers that several blocks hold are calibrated on what all of them give, and changed for none of them alone."""

import copy

import pytest
import torch
import torchqat
import transformers
from sentences import matches, sentence
from torch import nn

WEIGHT = "{dtype: int3, group_size: 32, scale: mse}"
RECIPE = """version: 1
layers:
  - match: "{match}"
    weight: {weight}
{more}initialize: {initialize}
"""


class Block(nn.Module):
    """What it has of its own makes others see inputs of another size in each block."""

    def __init__(self, shared, norm):
        super().__init__()
        self.norm, self.own, self.shared = norm, nn.Linear(64, 64), shared

    def forward(self, x):
        return x + self.shared(torch.relu(self.own(self.norm(x))))


class Net(nn.Module):
    def __init__(self, one_norm=False):
        super().__init__()
        torch.manual_seed(0)
        shared, norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.layers = nn.ModuleList([Block(shared, norm if one_norm else nn.LayerNorm(64)) for _ in range(4)])
        for index, block in enumerate(self.layers):
            nn.init.normal_(block.own.weight, std=0.1)
            block.own.weight.data[16 * index : 16 * index + 16] *= 4.0
        nn.init.uniform_(norm.weight, 0.2, 4.0)

    def forward(self, x):
        for block in self.layers:
            x = block(x)
        return x


def prepared(model, initialize, match="*", more=""):
    text = RECIPE.format(match=match, weight=WEIGHT, initialize=initialize, more=more)
    return torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(text, "recipe"))


def given(seed=0):
    mixed = torch.randn(64, 64, generator=torch.Generator().manual_seed(9))
    return torch.randn(512, 64, generator=torch.Generator().manual_seed(seed)) @ mixed / 8.0


@torch.no_grad()
def error(model, ready):
    wanted = model(given(1))
    return ((ready(given(1)) - wanted).norm() / wanted.norm()).item()


def test_a_layer_in_several_blocks_is_solved_once_for_all_of_them():
    model, errors = Net(), {}
    for method in ("mse", "gptq"):
        ready = prepared(model, f"{{method: {method}}}")
        found = torchqat.calibrate(ready, [given()])
        errors[method] = error(model, ready)
    assert found.warnings == [sentence("ptq.layer-in-several-blocks", layer="layers.0.shared", more="", untrained="")]
    assert found.tokens["layers.0.shared"] == 4 * 512 and "layers.1.shared" not in found.losses
    assert errors["gptq"] < 0.8 * errors["mse"], errors


def test_its_codes_are_those_of_the_layer_alone_on_all_that_it_is_given():
    model = Net()
    ready = prepared(model, "{method: gptq, objective: layer}", match="*.shared", more="    allow_float: true\n")
    seen = []
    with torch.no_grad():
        handle = ready.layers[0].shared.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        ready(given())
        handle.remove()
    alone = nn.Sequential(copy.deepcopy(model.layers[0].shared))
    alone = prepared(alone, "{method: gptq, objective: layer}")
    torchqat.calibrate(ready, [given()])
    torchqat.calibrate(alone, [torch.cat(seen)])
    assert torch.equal(ready.layers[0].shared.codes(), alone[0].codes())


def test_its_range_is_of_what_all_blocks_give_it():
    ready = prepared(Net(), "{method: gptq}", more="    input: {dtype: int8, granularity: tensor, dynamic: false}\n")
    found = torchqat.calibrate(ready, [given()])
    low, high = found.ranges["layers.0.shared"]
    seen = []
    with torch.no_grad():
        ready.layers[0].shared.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        ready(given())
    assert min(x.min() for x in seen) >= low - 0.05 * (high - low)
    assert high >= 0.95 * max(x.max() for x in seen)


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_nothing_is_folded_into_what_several_blocks_hold(method):
    """A norm that two blocks share is another's norm as well: a fold that holds in one block breaks the next."""
    model = Net(one_norm=True)
    more = "    input: {dtype: int8, granularity: tensor, dynamic: false}\n" if method == "smoothquant" else ""
    ready = prepared(model, f"{{method: {method}}}", more=more)
    found = torchqat.calibrate(ready, [given()])
    assert torch.equal(ready.layers[0].norm.weight, model.layers[0].norm.weight)
    assert any("5 layers have nothing to fold" in warning for warning in found.warnings)
    plain = prepared(model, "{method: mse}", more=more)
    torchqat.calibrate(plain, [given()])
    assert error(model, ready) < 1.1 * error(model, plain)


class Again(nn.Module):
    """One block, which calls one layer twice, with inputs that have nothing in common."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 64)])

    def forward(self, x):
        inner = self.layers[0]
        return torch.cat([inner(x * (torch.arange(64) < 32)), inner(x * (torch.arange(64) >= 32))])


def test_a_layer_that_a_call_runs_twice_sees_both():
    model = Again()
    ready = prepared(model, "{method: gptq, objective: layer}")
    torchqat.calibrate(ready, [given()])
    alone = prepared(nn.Sequential(copy.deepcopy(model.layers[0])), "{method: gptq, objective: layer}")
    x = given()
    torchqat.calibrate(alone, [torch.cat([x * (torch.arange(64) < 32), x * (torch.arange(64) >= 32)])])
    assert torch.equal(ready.layers[0].codes(), alone[0].codes())


@pytest.mark.parametrize("format", ["compressed-tensors", "gguf"])
def test_what_transformers_builds_twice_is_not_written_once(format, tiny_llama, tmp_path):
    """The folder would lack what the class looks for, and say so only to who loads it."""
    tiny_llama.model.layers[1].mlp = tiny_llama.model.layers[0].mlp
    ready = prepared(tiny_llama, "{method: rtn}", "model.layers.*")
    names = {"name": "model.layers.1.mlp.gate_proj", "first": "model.layers.0.mlp.gate_proj"}
    with pytest.raises(torchqat.UserError, match=matches("export.shared-weight", **names, model="LlamaForCausalLM")):
        torchqat.export(ready, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


class TakesMore(transformers.LlamaForCausalLM):
    def __init__(self, config, depth):
        super().__init__(config)
        self.depth = depth


@pytest.mark.parametrize("format", ["compressed-tensors", "safetensors"])
def test_what_a_class_shares_that_takes_more_than_a_configuration_is_not_known(format, tiny_llama, tmp_path):
    model = TakesMore(tiny_llama.config, depth=2)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    ready = prepared(model, "{method: rtn}", "model.layers.*")
    assert torchqat.export(ready, tmp_path / "out", format).is_dir()
