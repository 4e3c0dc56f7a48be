"""Inputs of layers that are given zeros alone, or nothing."""

import copy

import pytest
import torch
import torchqat
from sentences import matches, said
from test_calls import Conditioned, prepared
from torch import nn
from transformers.pytorch_utils import Conv1D


def test_an_input_of_zeros_alone_has_no_range(tmp_path):
    """Zeros fit under any scale: other inputs were rounded to whole numbers, but passed as they are once it was loaded."""
    model = prepared(Conditioned(), rest="    input: {dtype: int8, granularity: tensor}\n")
    x, zeros = torch.randn(4, 8), torch.zeros(4, 8)
    found = torchqat.calibrate(model, [(x, zeros)])
    assert len(found.warnings) == 1 and said(found.warnings[0], "calls.zeros", name="side")
    again = prepared(Conditioned(), rest="    input: {dtype: int8, granularity: tensor}\n")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, x), model(x, x)) and not model.side.input_ready
    with pytest.raises(torchqat.UserError, match=matches("export.input-without-range", name="side")):
        torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.calibrate(model, [(x, zeros), (x, x)]).warnings == [] and model.side.input_ready


def test_a_range_that_follows_begins_with_what_is_no_zero():
    """The average with the zeros of calibration was a hundredth of the input, to which it was clipped."""
    rest = "    input: {dtype: int8, granularity: tensor, observer: moving_average}\n"
    model, x = prepared(Conditioned(), rest=rest), torch.randn(4, 8)
    torchqat.calibrate(model, [(x, torch.zeros(4, 8))])
    model.train()
    model.side.observing = True
    model(x, x)
    assert model.side.input_high.item() == x.max().item()


@pytest.mark.parametrize(
    "spec", ["int8, granularity: tensor", "int8, granularity: tensor, scale: learned", "nvfp4", "int8"]
)
@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(16, 8), (0, 16)),
        (nn.Conv1d(16, 8, 3), (0, 16, 4)),
        (nn.Conv2d(16, 8, 3), (0, 16, 4, 4)),
        (nn.ConvTranspose2d(16, 8, 3), (0, 16, 4, 4)),
        (Conv1D(8, 16), (0, 16)),
    ],
)
def test_a_layer_may_be_given_nothing(layer, shape, spec):
    """As an expert to which no token of a batch is sent."""
    if len(shape) > 2 and "tensor" not in spec:
        return
    net = nn.Sequential(copy.deepcopy(layer))
    model = prepared(net, rest=f"    input: {{dtype: {spec}}}\n")
    some = torch.randn(2, *shape[1:])
    torchqat.calibrate(model, [some])
    y = model(torch.zeros(shape, requires_grad=True))
    assert y.shape == net(torch.zeros(shape)).shape
    (y.sum() + model(some).sum()).backward()
    assert model[0].weight.grad.isfinite().all()
