"""Numbers that are none, or that a file cannot hold, are told and not written, nor measured as if they were good."""

import copy
import math

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torch import nn

INT4 = "{dtype: int4, group_size: 32, grid: full, scale: mse}"
LEARNED = "{dtype: int4, group_size: 32, scale: learned}"
BLOCKS = 'version: 1\nlayers:\n  - {match: "model.layers.*", weight: %s}\n'


def refused(model, folder, said, format="compressed-tensors", dtype=None):
    with pytest.raises(torchqat.UserError, match=said):
        torchqat.export(model, folder, format, dtype=dtype)
    assert not list(folder.parent.iterdir())  # nothing half-written either
    if format != "gguf":
        with pytest.raises(torchqat.UserError, match=said):
            list(torchqat.live_weights(model, format, dtype=dtype))


def test_the_distance_of_a_broken_model_is_infinite_and_not_zero(tiny_llama):
    tokens = [torch.randint(0, 400, (2, 16))]
    broken = copy.deepcopy(tiny_llama)
    broken.model.norm.weight.data.fill_(math.nan)
    found = torchqat.evaluate(broken, tokens, reference=tiny_llama)
    assert found.kl == math.inf and found.perplexity == math.inf
    assert torchqat.evaluate(tiny_llama, tokens, reference=tiny_llama).kl == 0.0


@pytest.mark.parametrize("number", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("name", ("model.norm.weight", "model.embed_tokens.weight"))
def test_what_stays_in_floating_point_is_finite(tiny_llama, tmp_path, name, number):
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(BLOCKS % INT4))
    model.get_parameter(name).data[3] = number
    for format in ("compressed-tensors", "gguf"):
        count = model.get_parameter(name).data[3].numel()
        refused(model, tmp_path / "out", matches("export.not-finite", name=name, count=count), format)


@pytest.mark.parametrize("leaf", ("weight_scale", "weight_zero_point"))
def test_a_learned_scale_that_is_no_number_is_not_read_as_one(tmp_path, leaf):
    net = torchqat.prepare(Net(), recipe_for("{dtype: int4, group_size: 32, scale: learned, symmetric: false}"))
    getattr(net.second, leaf).data[0, 0] = math.nan
    refused(net, tmp_path / "out", matches("export.scale-not-finite", scale=leaf, layer="second", count=1))
    with pytest.raises(torchqat.UserError, match=matches("export.scale-not-finite", layer="second")):
        torchqat.convert(net)


@pytest.mark.parametrize("format", ("compressed-tensors", "gguf"))
def test_numbers_beyond_float16_do_not_become_infinite(tiny_llama, tmp_path, format):
    recipe = BLOCKS % "{dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(recipe))
    model.model.embed_tokens.weight.data[0, 0] = -1e6
    values = {"name": "model.embed_tokens.weight", "largest": 65504, "dtype": "float16", "beyond": "1e+06"}
    refused(model, tmp_path / "out", matches("export.beyond-dtype", **values), format, torch.float16)
    model.model.embed_tokens.weight.data[0, 0] = -65504.0
    torchqat.export(model, tmp_path / "out", format, dtype=torch.float16)  # as large as float16 is


def test_a_table_of_q8_0_holds_what_its_scales_do(tiny_llama, tmp_path):
    recipe = BLOCKS % "{dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(recipe))
    model.model.embed_tokens.weight.data[0, 0] = 8e6
    torchqat.export(model, tmp_path / "out", "gguf", embeddings="q8_0")
    model.model.embed_tokens.weight.data[0, 0] = 9e6
    with pytest.raises(torchqat.UserError, match=matches("export.beyond-dtype", beyond="9e+06")):
        torchqat.export(model, tmp_path / "more", "gguf", embeddings="q8_0")


def test_masks_may_be_infinite_in_a_narrower_dtype(tmp_path):
    net = Net()
    net.register_buffer("mask", torch.full((3,), torch.finfo(torch.float32).min))
    net = torchqat.prepare(net, recipe_for("{dtype: int4, group_size: 32, scale_dtype: float16}"))
    torchqat.export(net, tmp_path / "out", dtype=torch.float16)


@pytest.mark.parametrize("when", ("before", "after"))
def test_a_model_without_numbers_is_not_exported(tiny_llama, tmp_path, when):
    model = tiny_llama.to("meta") if when == "before" else tiny_llama
    model = torchqat.prepare(model, torchqat.parse_recipe(BLOCKS % LEARNED)).to("meta")
    refused(model, tmp_path / "out", matches("export.on-meta", name="model.embed_tokens.weight"))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("weight", (INT4, LEARNED, "{dtype: nvfp4, scale: mse}"))
def test_scales_are_float32_whatever_torch_makes_tensors_of(dtype, weight):
    net, x = Net(), torch.randn(3, 64)
    expected = torchqat.prepare(copy.deepcopy(net), recipe_for(weight))
    torch.set_default_dtype(dtype)
    try:
        found = torchqat.prepare(copy.deepcopy(net), recipe_for(weight))
        assert torch.equal(found(x), expected(x))
    finally:
        torch.set_default_dtype(torch.float32)
    kept = found.state_dict()
    for name, tensor in expected.state_dict().items():
        assert kept[name].dtype == tensor.dtype and torch.equal(kept[name], tensor), name


def test_a_layer_by_itself_is_refused_and_not_left_as_it_is():
    with pytest.raises(torchqat.UserError, match=matches("model.single-layer", type="Linear")):
        torchqat.prepare(nn.Linear(64, 32), recipe_for(INT4))
    held = torchqat.prepare(nn.Sequential(nn.Linear(64, 32)), recipe_for(INT4))
    assert isinstance(held[0], torchqat.QuantLinear)
