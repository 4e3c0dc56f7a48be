"""Scales that stay as they are while another weight is assigned: told, and chosen anew by ``calibrate``."""

import copy
import logging

import pytest
import torch
import torchqat
from sentences import said
from torch import nn
from torchqat.layers.scale_fit import misfit

SPECS = [
    "int4, group_size: 32",
    "int4, group_size: 32, symmetric: false",
    "int3, granularity: channel, grid: full",
    "int8, granularity: tensor",
    "nvfp4",
    "q4_k",
    "q6_k",
]
GPTQ = "initialize: {method: gptq}\n"


def recipe_of(spec, scale="mse", extra=""):
    layers = f"version: 1\nlayers: [{{match: '*', weight: {{dtype: {spec}, scale: {scale}}}}}]\n"
    return torchqat.parse_recipe(layers + extra, "recipe")


def floats(factor=1.0):
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net


def data(net, new):
    for own, other in zip((net[0], net[2]), (new[0], new[2]), strict=True):
        own.weight.data = other.weight.data


def data_copy(net, new):
    for own, other in zip((net[0], net[2]), (new[0], new[2]), strict=True):
        own.weight.data.copy_(other.weight.data)


def in_place(net, new):
    with torch.no_grad():
        for own, other in zip((net[0], net[2]), (new[0], new[2]), strict=True):
            own.weight.copy_(other.weight)


def scales(net):
    return [net[0].weight_scale.detach().clone(), net[2].weight_scale.detach().clone()]


@pytest.mark.parametrize("factor", [0.05, 5.0])
@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("spec", SPECS)
def test_scales_of_other_weights_are_told_and_calibrate_chooses_them_anew(spec, scale, factor):
    recipe, new = recipe_of(spec, scale), floats(factor)
    net = torchqat.prepare(floats(), recipe)
    in_place(net, new)
    heard = []
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert said(heard[0], "noted.scales-of-other-weights") and " and 1 more were chosen" in heard[0]
    found = torchqat.calibrate(net, [])
    assert said(found.warnings[0], "calibration.scales-anew", layers="0 and 1 more")
    expected = torchqat.prepare(copy.deepcopy(new), recipe)
    assert all(map(torch.equal, scales(net), scales(expected)))
    heard.clear()
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert heard == [] and torchqat.calibrate(net, []).warnings == []


@pytest.mark.parametrize("largest", [10.0, 20.0])
@pytest.mark.parametrize("bits", [3, 4])
def test_ranges_that_a_few_large_weights_decide_are_those_of_the_weights(bits, largest):
    net, recipe = nn.Sequential(nn.Linear(4096, 16)), recipe_of(f"int{bits}", extra="initialize: {method: rtn}\n")
    with torch.no_grad():
        net[0].weight.normal_()[:, 7] = largest
    heard, net = [], torchqat.prepare(net, recipe)
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert heard == [] and torchqat.calibrate(net, []).warnings == []


@pytest.mark.parametrize("assign", [data, data_copy, in_place])
def test_however_weights_are_assigned(assign):
    recipe, heard = recipe_of("int4, group_size: 32"), []
    net = torchqat.prepare(floats(), recipe)
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert heard == []
    assign(net, floats(8.0))
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert len(heard) == 1 and said(heard[0], "noted.scales-of-other-weights")


@pytest.mark.parametrize("assign", [data, data_copy, in_place])
def test_weights_that_are_assigned_and_never_trained_are_told_by_exports(assign, tmp_path):
    net, heard = torchqat.prepare(floats(), recipe_of("int4, group_size: 32")), []
    assign(net, floats(8.0))
    torchqat.export(net, tmp_path / "out", "safetensors", say=heard.append)
    assert len(heard) == 1 and said(heard[0], "noted.scales-of-other-weights")


def test_parameters_that_are_reset_by_their_layer():
    recipe, heard = recipe_of("int4, granularity: channel"), []
    net = torchqat.prepare(floats(0.1), recipe)
    net[0].reset_parameters()
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert said(heard[0], "noted.scales-of-other-weights", layers="0")


@pytest.mark.parametrize("rate", [1e-3, 3e-2])
@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("spec", SPECS)
def test_weights_that_train_are_not_told_however_far_they_go(spec, scale, rate, tmp_path):
    recipe, heard = recipe_of(spec, scale), []
    net = torchqat.prepare(floats(), recipe)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    schedule = torchqat.Schedule(net, recipe, 20, say=heard.append)
    for _ in range(20):
        net(torch.randn(16, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    torchqat.export(net, tmp_path / "out", "safetensors", say=heard.append)
    torchqat.Schedule(net, recipe, 20, say=heard.append)
    heard = [sentence for sentence in heard if not said(sentence, "noted.lost-scales")]  # at the rate of weights
    assert heard == [] and torchqat.calibrate(net, []).warnings == []


def trained(recipe):
    net = torchqat.prepare(floats(), recipe)
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torchqat.Schedule(net, recipe, 2, optimizer)
    for _ in range(2):
        net(torch.randn(16, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return net


@pytest.mark.parametrize("assign", [data, in_place])
def test_weights_that_are_assigned_after_training_are_told(assign, tmp_path):
    recipe, heard, new = recipe_of("int4, group_size: 32", "learned"), [], floats(8.0)
    net = trained(recipe)
    assign(net, new)
    torchqat.export(net, tmp_path / "out", "safetensors", say=heard.append)
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert len(heard) == 2 and all(said(note, "noted.scales-of-other-weights") for note in heard)
    found = torchqat.calibrate(net, [])
    assert said(found.warnings[0], "calibration.scales-anew", layers="0 and 1 more")
    assert all(map(torch.equal, scales(net), scales(torchqat.prepare(new, recipe))))


def test_averages_and_moves_of_trained_weights_are_not_told(tmp_path):
    recipe, heard = recipe_of("int4, group_size: 32", "learned"), []
    net = trained(recipe)
    with torch.no_grad():  # as the swap with a moving average
        for parameter in net.parameters():
            parameter.copy_(0.99 * parameter)
    for index, found in enumerate((net, copy.deepcopy(net), copy.deepcopy(net).half())):
        torchqat.export(found, tmp_path / str(index), "safetensors", say=heard.append)
    assert heard == []


def test_what_a_file_says_of_both_is_loaded_without_a_word(caplog):
    recipe = recipe_of("int4, group_size: 32", "learned", GPTQ)
    trained = torchqat.prepare(floats(7.0), recipe)
    torchqat.calibrate(trained, [torch.randn(64, 256)])
    net = torchqat.prepare(floats(), recipe)
    net.load_state_dict(trained.state_dict())
    heard = []
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in trained.state_dict().items())
    assert heard == [] and caplog.records == []


@pytest.mark.parametrize("scale", ["mse", "learned"])
def test_weights_without_scales_replace_those_that_calibration_rounded(caplog, scale):
    recipe, new = recipe_of("int4, group_size: 32", scale, GPTQ), floats(7.0)
    net = torchqat.prepare(floats(), recipe)
    torchqat.calibrate(net, [torch.randn(64, 256)])
    own = {name: value.clone() for name, value in net.state_dict().items() if name.endswith(("weight", "bias"))}
    before = scales(net)
    net.load_state_dict(own)
    assert all(map(torch.equal, scales(net), before)) and caplog.records == []
    with caplog.at_level(logging.WARNING, "torchqat"):
        net.load_state_dict(new.state_dict())
    assert said(caplog.text, "noted.loaded-others", method="gptq", count=2)
    assert all(map(torch.equal, scales(net), scales(torchqat.prepare(copy.deepcopy(new), recipe))))
    heard = []
    torchqat.Schedule(net, recipe, 4, say=heard.append).step()
    assert said(heard[0], "noted.uncalibrated", method="gptq")
    torchqat.calibrate(net, [torch.randn(64, 256)])
    assert misfit(net[0]) == misfit(net[2]) == 0.0


def test_scales_that_a_schedule_returns_to_are_looked_at_from_other_widths():
    recipe = recipe_of("int4, group_size: 32", "mse", GPTQ + "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n")
    net = torchqat.prepare(floats(), recipe)
    torchqat.calibrate(net, [torch.randn(64, 256)])
    heard = []
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert heard == [] and net[0].weight_bits == 8
    in_place(net, floats(7.0))
    for layer in (net[0], net[2]):
        layer.derive_weight_scale()
    torchqat.Schedule(net, recipe, 4, say=heard.append)
    assert said(heard[0], "noted.scales-of-other-weights")
