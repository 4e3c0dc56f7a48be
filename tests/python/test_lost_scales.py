"""Learned scales that training took to zero or below are told, and exported as training computed with them."""

import pytest
import torch
import torchqat
from sentences import said
from test_noted import BATCH, net


def learned(grid="full", input=""):
    weight = f"{{dtype: int4, group_size: 8, scale: learned, grid: {grid}}}"
    of = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: '*', weight: {weight}{input}}}]\n")
    return torchqat.prepare(net(), of)


@pytest.mark.parametrize("number", [-0.05, 0.0])
def test_learned_scales_at_zero_or_below_are_told_and_exported_as_they_are(number, tmp_path, caplog):
    model = learned(input=", input: {dtype: int8, granularity: tensor, scale: learned}")
    torchqat.calibrate(model, [BATCH["batch"]["x"]])
    model[2].weight_scale.data[0] = number
    model[2].input_scale.data.neg_()
    out = torchqat.export(model, tmp_path / "out", "safetensors")
    assert said(caplog.text, "noted.lost-scales", count=3, layers="2")
    assert torchqat.verify(out, model, engine="reader").ok
    for layer, stored in zip((model[0], model[2]), torchqat.convert(model), strict=True):
        assert torch.equal(layer.quantized_weight(), stored.dequantize())


def test_scales_of_the_signed_grid_may_be_negative(tmp_path, caplog):
    """As that of its largest element is."""
    model = learned("signed")
    assert model[0].weight_scale.min() < 0 < model[0].weight_scale.max()
    torchqat.export(model, tmp_path / "out", "safetensors")
    assert not said(caplog.text, "noted.lost-scales")
