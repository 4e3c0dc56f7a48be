"""Models that are opened: numbers that are none, and those with more digits than they are read with, are told at once."""

import copy
import math

import pytest
import torch
import torchqat
import transformers
from sentences import matches, said
from torch import nn
from torchqat.kinds import find_kind

IDS = torch.arange(32).view(2, 16)
RECIPE = """version: 1
export: [%s]
layers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 32}}]
initialize: {method: gptq}
"""


def recipe(format="compressed-tensors"):
    return torchqat.parse_recipe(RECIPE % format, "recipe")


class Masked(nn.Module):
    """A model of a function: with a mask, as attention has it, and a statistic."""

    def __init__(self):
        super().__init__()
        self.head, self.statistic = nn.Linear(4, 2), nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))


def masked():
    return Masked()


def broken():
    found = Masked()
    found.statistic.running_mean[1] = math.inf
    return found


class Bounded(nn.Module):
    """With a clamp that is not in use, as Gemma 4's encoders have, and ALiBi's slopes under a mask."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.register_buffer("least", torch.tensor(-math.inf))
        self.register_buffer("most", torch.tensor(math.inf))
        self.register_buffer("alibi", torch.full((4, 4), -math.inf).triu(1) - torch.arange(4.0))


def bounded():
    return Bounded()


def double():
    return Masked().double()


@pytest.mark.parametrize("number", (math.nan, math.inf, -math.inf))
def test_statistics_of_a_folder_must_be_numbers(tmp_path, number):
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path)
    assert find_kind("classifier").load(str(tmp_path), "float32")
    name = "resnet.embedder.embedder.normalization.running_var"
    model.get_buffer(name)[0] = number
    model.save_pretrained(tmp_path)
    with pytest.raises(torchqat.UserError, match=matches("model.not-finite", what="numbers", path=tmp_path, name=name)):
        find_kind("classifier").load(str(tmp_path), "float32")


def test_buffers_of_a_function_but_for_masks():
    assert find_kind("classifier").load(f"{__name__}:masked", "float32").mask[0, 1] == -math.inf
    with pytest.raises(torchqat.UserError, match=matches("model.not-finite", name="statistic.running_mean")):
        find_kind("classifier").load(f"{__name__}:broken", "float32")


def test_infinite_bounds_and_masks_are_no_fault():
    assert find_kind("classifier").load(f"{__name__}:bounded", "float32").most == math.inf


@pytest.mark.parametrize("name", ("head.bias", "norm.weight", "norm.running_var"))
def test_a_model_in_memory_must_have_numbers(name):
    """In what stays in floating point, too: a statistic would make every output NaN, and be exported."""
    net = nn.ModuleDict({"head": nn.Linear(32, 32), "norm": nn.BatchNorm1d(32)})
    net.state_dict()[name][1] = math.nan
    what = "numbers" if name == "norm.running_var" else "weights"
    with pytest.raises(torchqat.UserError, match=matches("model.not-finite", what=what, path="the model", name=name)):
        torchqat.prepare(net, torchqat.parse_recipe("version: 1\nlayers: [{match: '*', weight: {dtype: int4}}]\n"))
    assert type(net["head"]) is nn.Linear


def test_a_model_in_memory_may_have_infinite_bounds_and_masks():
    torchqat.prepare(bounded(), torchqat.parse_recipe("version: 1\nlayers: [{match: head, weight: {dtype: int8}}]\n"))


@pytest.mark.parametrize(
    "name", ("model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight")
)
@pytest.mark.parametrize("format", ("compressed-tensors", "gguf"))
def test_streaming_writes_no_number_that_is_none(tiny_llama, tmp_path, name, format):
    tiny_llama.get_parameter(name).data.view(-1)[3] = math.nan
    tiny_llama.save_pretrained(tmp_path / "model")
    with pytest.raises(torchqat.UserError, match=matches("model.not-finite", what="weights", name=name)):
        torchqat.quantize_folder(tmp_path / "model", tmp_path / "out", recipe(format), [IDS])
    assert not (tmp_path / "out").exists()


def test_float64_is_told(tiny_llama, tmp_path):
    path, heard = tmp_path / "model", []
    whole = copy.deepcopy(tiny_llama).double()
    whole.save_pretrained(path)
    for open_it in (find_kind("causal_lm").load, find_kind("causal_lm").outline):
        heard.clear()
        open_it(str(path), "bfloat16", heard.append)
        assert len(heard) == 1 and said(heard[0], "model.float64", path=path, dtype="bfloat16")
    streamed = torchqat.quantize_folder(path, tmp_path / "out", recipe(), [IDS])
    assert said(streamed.calibration.warnings[-1], "model.float64", dtype="float32")
    heard.clear()
    tiny_llama.save_pretrained(path)
    find_kind("causal_lm").load(str(path), "bfloat16", heard.append)
    assert heard == []


def test_float64_of_a_function_is_told():
    heard = []
    model = find_kind("classifier").load(f"{__name__}:double", "float32", heard.append)
    assert model.head.weight.dtype == torch.float32
    assert said(heard[0], "model.float64", names="head.weight and 3 more", dtype="float32")
