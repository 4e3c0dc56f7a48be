"""States whose scales are for other levels than those of the layer that loads them: refused, where sizes agree."""

import copy

import pytest
import torch
import torchqat
from sentences import matches
from torch import nn
from torchqat.layers.state_text import TEXT


def prepared(weight, input=""):
    torch.manual_seed(0)
    extra = f", input: {{{input}}}" if input else ""
    text = f"version: 1\nlayers: [{{match: '*', weight: {{{weight}}}{extra}}}]\n"
    return torchqat.prepare(nn.Sequential(nn.Linear(256, 256)), torchqat.parse_recipe(text, "recipe"))


def refuses(net, state, **values):
    with pytest.raises(RuntimeError, match=matches("load.scales-of-other-levels", layer="0", **values)):
        net.load_state_dict(state)


@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize(
    "own, other, ours, theirs",
    [
        ("dtype: int4, group_size: 64", "dtype: int4, group_size: 64, grid: full", "int narrow 1x64", "int full 1x64"),
        ("dtype: int4, group_size: 32, grid: full", "dtype: q4_0", "int full 1x32", "int signed 1x32"),
        ("dtype: int4, block: [16, 16]", "dtype: int4, group_size: 256", "int narrow 16x16", "int narrow 1x256"),
        ("dtype: fp4_e2m1, group_size: 32", "dtype: mxfp4", "fp4_e2m1 1x32", "fp4_e2m1 1x32 e8m0_floor"),
        ("dtype: mxfp4", "dtype: mxfp8_e4m3", "fp4_e2m1 1x32 e8m0_floor", "fp8_e4m3 1x32 e8m0_floor"),
        ("dtype: int4, group_size: 32", "dtype: fp4_e2m1, group_size: 32", "int narrow 1x32", "fp4_e2m1 1x32"),
    ],
)
def test_levels_of_weights(own, other, ours, theirs, scale):
    own, other = prepared(f"{own}, scale: {scale}"), prepared(f"{other}, scale: {scale}")
    refuses(own, other.state_dict(), own=ours, other=theirs)
    refuses(other, own.state_dict(), own=theirs, other=ours)


def test_symmetric_and_asymmetric_scales_that_are_searched():
    own, other = prepared("dtype: int4, scale: mse"), prepared("dtype: int4, scale: mse, symmetric: false")
    refuses(own, other.state_dict(), own="int narrow 1x-1", other="int asymmetric 1x-1")
    weights = {name: value for name, value in other.state_dict().items() if name in ("0.weight", "0.bias")}
    own.load_state_dict(weights)  # for which scales are chosen
    assert torch.equal(own[0].weight_scale, prepared("dtype: int4, scale: mse")[0].weight_scale)


def test_levels_of_inputs():
    own = prepared("dtype: int8", "dtype: int8, granularity: tensor")
    other = prepared("dtype: int8", "dtype: int8, granularity: tensor, symmetric: false")
    for net in (own, other):
        torchqat.calibrate(net, [torch.randn(4, 256)])
    refuses(own, other.state_dict(), own="int narrow -1x-1", other="int asymmetric -1x-1")


def test_levels_of_caches(tiny_llama):
    def attached(kind):
        text = "version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int8}}]\n"
        recipe = torchqat.parse_recipe(f"{text}kv_cache: {{dtype: {kind}, keys: head, values: head}}\n", "recipe")
        model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe)
        torchqat.calibrate(model, [torch.arange(32).view(2, 16)])
        return model

    own, other = attached("fp8_e4m3"), attached("fp8_e5m2")
    own.load_state_dict(attached("fp8_e4m3").state_dict())
    cache = "model.layers.0.self_attn.kv_cache"
    with pytest.raises(RuntimeError, match=matches("load.scales-of-other-levels", layer=cache)):
        own.load_state_dict(other.state_dict())


def test_what_may_differ_loads():
    """Widths are in the state, and scales of one dtype may be numbers of another."""
    state = prepared("dtype: int8, group_size: 32, scale: mse").state_dict()
    net = prepared("dtype: int4, group_size: 32, scale: mse, scale_dtype: float16")
    net.load_state_dict(state)
    assert net[0].weight_bits == 8 and torch.equal(net[0].weight_scale, state["0.weight_scale"])
    found = prepared("dtype: int4, group_size: 32").state_dict()
    prepared("dtype: int4, group_size: 32, grid: full").load_state_dict(found)  # scales that follow the weight


def test_states_of_before_load_and_what_was_said_stays_true():
    own, other = prepared("dtype: int4, scale: mse"), prepared("dtype: int4, scale: mse")
    state = {name: value for name, value in other.state_dict().items() if not name.endswith(TEXT)}
    before = own[0].quantizer_text.clone()
    own.load_state_dict(state)
    assert torch.equal(own[0].quantizer_text, before)
    assert bytes(before.tolist()).rstrip(b"\0") == b"int narrow 1x-1, none"
    state["0." + TEXT] = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        own.load_state_dict(state)
