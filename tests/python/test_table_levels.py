"""Levels of a table, llama.cpp's sixteen: found, rounded to, and trained through, beside a search over them in float64."""

import copy

import pytest
import torch
import torchqat
from gguf import GGMLQuantizationType
from gguf.quants import IQ4_NL
from sentences import matches
from torch import nn
from torchqat import QuantSpec, ops

GRID = "iq4_nl 1x32 float16"
LEVELS = torch.tensor(IQ4_NL.kvalues, dtype=torch.float64)


def weight_of(seed=0, rows=16, cols=128):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * 10 ** (torch.rand(rows, 1, generator=generator) * 4 - 3)


def nearest(u):
    """Of float32 numbers, by a search in float64; halfway the upper level."""
    distance = (u.double()[..., None] - LEVELS).abs()
    return LEVELS[len(LEVELS) - 1 - distance.flip(-1).argmin(-1)]


def expanded(scale):
    return scale.repeat_interleave(32, 1)


def test_the_forward_is_its_float64_twin():
    for seed in range(20):
        x = weight_of(seed)
        scale, _ = ops.choose_qparams(x, f"minmax {GRID}")
        blocks = x.view(-1, 32)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        expected = (-largest / 127).view(16, -1).half().float()
        assert torch.equal(scale, torch.where(expected.abs() < 2**-14, expected.sign() * 2**-14, expected))
        u = x * (1 / expanded(scale))
        for text, given in ((f"minmax {GRID}", None), (f"fixed {GRID}", scale)):
            assert torch.equal(ops.fake_quantize(x, text, given), (nearest(u) * expanded(scale).double()).float())
        codes = ops.quantize(x, f"fixed {GRID}", scale)
        assert codes.dtype == torch.int8 and torch.equal(codes.double(), nearest(u))


def test_gradients_of_learned_scales_are_those_of_the_twin():
    """(4) and (5): straight through until half a gap beyond the ends."""
    x = weight_of(1).requires_grad_()
    found, _ = ops.choose_qparams(x.detach(), f"minmax {GRID}")
    scale = ops.round_qparams(found * 0.7, f"learned {GRID}")[0].requires_grad_()
    grad = torch.randn(x.shape)
    ops.fake_quantize(x, f"learned {GRID}", scale).backward(grad)
    u = x.detach() * (1 / expanded(scale.detach()))
    inside = (u >= -138.5) & (u <= 125)
    assert 0 < (~inside).sum() < x.numel() / 4
    assert torch.equal(x.grad, grad * inside)
    slope = torch.where(inside, nearest(u) - u.double(), nearest(u))
    expected = (grad.double() * slope).view(16, 4, 32).sum(-1)
    torch.testing.assert_close(scale.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_search_is_at_least_as_good_as_the_range():
    x = weight_of(2)
    errors = []
    for method in ("minmax", "mse"):
        scale, _ = ops.choose_qparams(x, f"minmax {GRID}", method)
        errors.append((ops.fake_quantize(x, f"fixed {GRID}", scale) - x).view(-1, 32).square().sum(1))
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all() and errors[1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize("dtype", ("iq4_nl", "iq4_xs"))
def test_a_schedule_begins_with_integers(dtype):
    recipe = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "*", weight: {{dtype: {dtype}, scale: learned}}}}]\n'
        "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n"
    )
    model = torchqat.prepare(nn.Sequential(nn.Linear(256, 8, bias=False)), recipe)
    layer, schedule = model[0], torchqat.Schedule(model, recipe, 4)
    assert layer.weight_bits == 8
    for _ in range(2):
        model(torch.randn(4, 256)).sum().backward()
        schedule.step()
    scale, _ = layer.stored_qparams()
    levels = layer.quantized_weight().detach().double() / expanded(scale).double()
    assert torch.isin(levels.round(decimals=3), LEVELS).all()


@pytest.mark.parametrize("dtype", ("iq4_nl", "iq4_xs"))
def test_gptq_is_better_than_rounding_to_nearest(dtype):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(256, 64, bias=False)), torch.randn(512, 256) @ torch.randn(256, 256) / 16
    wanted, losses = net(x).detach(), {}
    for method in ("rtn", "gptq"):
        recipe = torchqat.parse_recipe(
            f'version: 1\nlayers: [{{match: "*", weight: {{dtype: {dtype}, scale: mse}}}}]\n'
            f"initialize: {{method: {method}}}\n"
        )
        model = torchqat.prepare(copy.deepcopy(net), recipe)
        torchqat.calibrate(model, [x], forward=lambda model, batch: model(batch))
        losses[method] = nn.functional.mse_loss(model(x), wanted).item()
    assert losses["gptq"] < 0.6 * losses["rtn"]


def test_other_scales_and_formats_are_refused():
    with pytest.raises(ValueError, match=matches("ops.signed-scales", grid="iq4_nl", code="e4m3")):
        ops.fake_quantize(torch.ones(1, 32), "minmax iq4_nl 1x32 e4m3*float32@-1x-1")
    spec = QuantSpec(8, grid="iq4_nl", granularity="group", group_size=32, scale_dtype="float16")
    assert (spec.bits, spec.dtype, spec.type_name, spec.is_float, spec.is_named) == (4, "iq4_nl", "iq4_nl", False, True)
    assert GGMLQuantizationType[spec.type_name.upper()] == 20


@pytest.mark.parametrize("format", ("compressed-tensors", "compressed-tensors-0.18", "gptq", "awq", "mlx", "onnx"))
def test_formats_of_integers_do_not_take_the_levels_of_a_table(format, tiny_llama, tmp_path):
    recipe = torchqat.parse_recipe('version: 1\nlayers: [{match: "model.layers.*.mlp.*", weight: {dtype: iq4_nl}}]\n')
    model = torchqat.prepare(tiny_llama, recipe)
    first = "model.layers.0.mlp.gate_proj"
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", format=format, layer=first)) as refused:
        torchqat.export(model, tmp_path / "out", format, example=torch.zeros(1, 4, dtype=torch.int64))
    assert "there is iq4_nl group 32" in str(refused.value) and "gguf and safetensors can" in str(refused.value)
    assert not (tmp_path / "out").exists()
